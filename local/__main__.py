"""Starts and stops Pub/Sub and BigQuery on this machine: no Google account is needed."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.command import CommandError, Parser, command
from common.names import PROJECT, STACK
from common.options import add_options, option, read_options
from common.output import add_format, print_record
from common.values import Number, at_least
from local.daemon import Daemon, Running, default_state_dir
from local.endpoints import Endpoints
from local.process import LocalStackError
from local.stack import DEFAULT_PROJECT, LocalStack, PubSubChoice

EXAMPLES: Final = """\
  eval "$(anomaly local up)"     # start, and point this shell at it
  anomaly local status
  eval "$(anomaly local down)"   # stop, and point it there no more"""

NOT_RUNNING: Final = 3
"""Exit status of `status` where the stack does not run."""
_PORT: Final = at_least(0, 65535)


@dataclass(frozen=True)
class StackOptions:
    """The stack that `up` starts."""

    project: str = option(DEFAULT_PROJECT, type=PROJECT, help="project id (default: %(default)s)")
    pubsub: PubSubChoice = option(
        "auto",
        help="server of Pub/Sub; auto: gcloud's where gcloud and Java are there, otherwise the embedded one",
    )
    bigquery: bool = option(True, help="the BigQuery emulator (default: on)")
    pubsub_port: int = option(0, type=_PORT, metavar="PORT", help="default: 0, any free one")
    bigquery_port: int = option(0, type=_PORT, metavar="PORT", help="default: 0, any free one")
    bigquery_storage_port: int = option(0, type=_PORT, metavar="PORT", help="default: 0, any free one")
    data_dir: Path | None = option(
        None, type=Path, metavar="DIR", help="directory that keeps BigQuery's data (default: in memory)"
    )
    gcs_root: Path | None = option(
        None, type=Path, metavar="DIR", help="directory that stands for gs:// in BigQuery's jobs"
    )
    timeout: float = option(
        60.0, type=Number(0, whole=False), metavar="SECONDS", help="longest wait (default: %(default)s)"
    )

    def stack(self) -> LocalStack:
        """Makes the stack without starting it."""
        return LocalStack(
            project=self.project,
            pubsub=self.pubsub,
            bigquery=self.bigquery,
            pubsub_port=self.pubsub_port,
            bigquery_port=self.bigquery_port,
            bigquery_storage_port=self.bigquery_storage_port,
            data_dir=self.data_dir and self.data_dir.resolve(),
            gcs_root=self.gcs_root and self.gcs_root.resolve(),
            timeout=self.timeout,
        )


@dataclass(frozen=True)
class NameOptions:
    """The name of a stack, where several run."""

    name: str = option(
        "default", type=STACK, metavar="NAME", help="one of several stacks (default: %(default)s)"
    )
    state_dir: Path | None = option(
        None, type=Path, metavar="DIR", help=f"directory of the state files (default: {default_state_dir()})"
    )

    def daemon(self) -> Daemon:
        """Makes the handle of the stack of this name."""
        return Daemon(self.name, self.state_dir)


def parser() -> Parser:
    """Makes the parser of this command."""
    parser = Parser("anomaly local", __doc__, EXAMPLES)
    actions: Any = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    up = actions.add_parser(
        "up",
        prog="anomaly local up",
        help="start the emulators, return when they answer, and print `export` lines for the shell",
        description="Start the emulators and return when they answer.",
        examples='  eval "$(anomaly local up --project=my-project --data_dir=out/bigquery)"',
    )
    add_options(up, StackOptions, "stack")
    up.add_argument("--foreground", action="store_true", help="stay, and stop the stack at Ctrl-C")
    status = actions.add_parser(
        "status",
        prog="anomaly local status",
        help=f"show where the stack listens; exit status {NOT_RUNNING} when it does not run",
        examples="  anomaly local status --format json",
    )
    add_format(status)
    down = actions.add_parser(
        "down",
        prog="anomaly local down",
        help="stop the stack, and print the `unset` line for a shell that points to it",
        examples='  eval "$(anomaly local down)"',
    )
    for action in (up, status, down):
        add_options(action, NameOptions, "name")
    return parser


def _exports(endpoints: Endpoints) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in endpoints.environment().items())


def _up(name: NameOptions, options: StackOptions, is_foreground: bool, arguments: Sequence[str]) -> int:
    daemon, stack = name.daemon(), options.stack()
    stack.check()
    if is_foreground:
        print(f"Starting the local stack {name.name!r}; Ctrl-C stops it.", file=sys.stderr)
        daemon.serve(stack)
        return 0
    running = daemon.status()
    if running is None:
        print("Starting the local stack ...", file=sys.stderr)
        running = daemon.up(arguments, options.timeout + 10)
        pubsub = running.endpoints.pubsub_kind
        server = f" Pub/Sub is {'the embedded one' if pubsub == 'embedded' else 'gcloud'}." if pubsub else ""
        print(f"Ready.{server} `anomaly local down{daemon.flags()}` stops it.", file=sys.stderr)
    else:
        print("It is running already: other options of this command are ignored.", file=sys.stderr)
        _tell_ended(daemon, running)
    print(_exports(running.endpoints))
    _print_unset(_ours(running.started.environment().keys() - running.endpoints.environment(), running))
    return 0


def _tell_ended(daemon: Daemon, running: Running) -> None:
    if advice := daemon.advice(running):
        print(f"{advice} The log: {daemon.log_path}", file=sys.stderr)


def _ours(names: Iterable[str], running: Running) -> list[str]:
    """Picks the variables that have the stack's own values in this shell."""
    values = running.started.environment()
    return [name for name in values if name in names and os.environ.get(name) == values[name]]


def _print_unset(names: Sequence[str]) -> None:
    if names:
        print("unset", *names)


def _record(running: Running | None) -> dict[str, Any]:
    if running is None:
        return {"running": False}
    content = {"running": True, "pid": running.pid, **running.endpoints.to_dict()}
    content |= {"ended": ", ".join(running.ended)} if running.ended else {}
    return content | {"environment": running.endpoints.environment()}


def _status(name: NameOptions, form: Any) -> int:
    daemon = name.daemon()
    running = daemon.status()
    record = _record(running)
    if form == "table":
        record.pop("environment", None)
    print_record(record, form)
    if running is None:
        print(f"Start it with `anomaly local up{daemon.flags()}`.", file=sys.stderr)
        return NOT_RUNNING
    _tell_ended(daemon, running)
    return 0


def _run(namespace: argparse.Namespace, arguments: Sequence[str]) -> int:
    name = read_options(NameOptions, namespace)
    if namespace.action == "up":
        return _up(name, read_options(StackOptions, namespace), namespace.foreground, arguments)
    if namespace.action == "status":
        return _status(name, namespace.format)
    return _down(name.daemon())


def _down(daemon: Daemon) -> int:
    running = daemon.status()
    stopped = daemon.down()
    print(f"The local stack {'has stopped' if stopped else 'was not running'}.", file=sys.stderr)
    names = _ours(running.started.environment(), running) if running else []
    if any(name.endswith("_HOST") for name in names):  # this shell points to it
        _print_unset(names)
    return 0


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    namespace = parser().parse_args(arguments)
    try:
        return _run(namespace, arguments[1:])
    except LocalStackError as error:
        raise CommandError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
