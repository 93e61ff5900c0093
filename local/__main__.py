"""Starts and stops Pub/Sub and BigQuery on this machine: no Google account is needed.

example:
  eval "$(python -m local up)"     # start, and point this shell at it
  python -m local status
  python -m local down
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from common.names import PROJECT, STACK
from common.streams import ends_quietly
from local.daemon import Daemon, Running, default_state_dir
from local.endpoints import Endpoints
from local.process import LocalStackError
from local.stack import DEFAULT_PROJECT, LocalStack


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser(
        "up",
        help="start the emulators, return when they answer, and print `export` lines for the shell",
        description="Start the emulators and return when they answer.",
        epilog='example: eval "$(python -m local up --project=my-project --data-dir=out/bigquery)"',
    )
    up.add_argument(
        "--project", type=PROJECT, default=DEFAULT_PROJECT, help="project id (default: %(default)s)"
    )
    up.add_argument("--pubsub-port", type=_port, default=0, help="default: 0, any free one")
    up.add_argument("--bigquery-port", type=_port, default=0, help="default: 0, any free one")
    up.add_argument("--bigquery-storage-port", type=_port, default=0, help="default: 0, any free one")
    up.add_argument("--no-pubsub", action="store_true", help="leave the Pub/Sub emulator out")
    up.add_argument("--no-bigquery", action="store_true", help="leave the BigQuery emulator out")
    up.add_argument("--data-dir", type=Path, help="keep BigQuery's data here (default: in memory)")
    up.add_argument("--gcs-root", type=Path, help="a directory that stands for gs:// in BigQuery's jobs")
    up.add_argument("--timeout", type=float, default=60.0, help="seconds to wait (default: %(default)s)")
    up.add_argument("--foreground", action="store_true", help="stay, and stop the stack at Ctrl-C")
    commands.add_parser("status", help="say where the stack listens; exit status 3 when it does not run")
    commands.add_parser("down", help="stop the stack")
    for command in commands.choices.values():
        command.add_argument(
            "--name", type=STACK, default="default", help="one of several stacks (default: %(default)s)"
        )
        command.add_argument("--state-dir", type=Path, help=f"default: {default_state_dir()}")
        command.add_argument(
            "--format", choices=("text", "json"), default="text", help="default: %(default)s"
        )
    return found


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: 0 to 65535")
    return port


def _stack(options: argparse.Namespace) -> LocalStack:
    return LocalStack(
        project=options.project,
        pubsub=not options.no_pubsub,
        bigquery=not options.no_bigquery,
        pubsub_port=options.pubsub_port,
        bigquery_port=options.bigquery_port,
        bigquery_storage_port=options.bigquery_storage_port,
        data_dir=options.data_dir and options.data_dir.resolve(),
        gcs_root=options.gcs_root and options.gcs_root.resolve(),
        timeout=options.timeout,
    )


def _exports(endpoints: Endpoints) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in endpoints.environment().items())


def _up(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    daemon = Daemon(options.name, options.state_dir)
    stack = _stack(options)
    lacks = stack.missing(pubsub_wanted=stack.pubsub, bigquery_wanted=stack.bigquery)
    if lacks:
        raise LocalStackError("\n".join(lacks))
    if options.foreground:
        print(f"Starting the local stack {options.name!r}; Ctrl-C stops it.", file=sys.stderr)
        daemon.serve(stack)
        return 0
    running = daemon.status()
    if running is None:
        print("Starting the local stack ...", file=sys.stderr)
        running = daemon.up(arguments[1:], options.timeout + 10)
        print(f"Ready. `python -m local down{_suffix(options)}` stops it.", file=sys.stderr)
    else:
        print("It is running already; what was asked for besides is ignored.", file=sys.stderr)
    print(_json(running) if options.format == "json" else _exports(running.endpoints))
    return 0


def _suffix(options: argparse.Namespace) -> str:
    name = "" if options.name == "default" else f" --name={shlex.quote(options.name)}"
    return name + (f" --state-dir={shlex.quote(str(options.state_dir))}" if options.state_dir else "")


def _json(running: Running | None) -> str:
    if running is None:
        return json.dumps({"running": False})
    content = {"running": True, "pid": running.pid, "endpoints": running.endpoints.to_dict()}
    return json.dumps(content | {"environment": running.endpoints.environment()}, indent=2)


def _status(options: argparse.Namespace) -> int:
    running = Daemon(options.name, options.state_dir).status()
    if options.format == "json":
        print(_json(running))
    elif running is None:
        print(f"The local stack does not run. Start it with `python -m local up{_suffix(options)}`.")
    else:
        print(f"The local stack runs (process {running.pid}).")
        for label, value in running.endpoints.to_dict().items():
            print(f"  {label.replace('_', ' '):18}{value or '-'}")
    return 0 if running else 3


def _down(options: argparse.Namespace) -> int:
    stopped = Daemon(options.name, options.state_dir).down()
    if options.format == "json":
        print(json.dumps({"stopped": stopped}))
    else:
        print("The local stack has stopped." if stopped else "The local stack was not running.")
    return 0


@ends_quietly
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    try:
        if options.command == "up":
            return _up(options, arguments)
        return _status(options) if options.command == "status" else _down(options)
    except LocalStackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
