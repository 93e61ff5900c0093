"""Runs TorchServe and talks to it.

Example:
  python -m model.serving.torchserve start --model out/model
  python -m model.serving.torchserve status
  python -m model.serving.torchserve register --model out/model-2
  python -m model.serving.torchserve set-default --version 20260102.090000
  python -m model.serving.torchserve stop
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import Final

import requests

from common.command import command
from common.connections import direct
from model.artifact import MODEL_NAME, ArtifactError
from model.serving.settings import ENV_MODEL, usable_cores
from model.serving.torchserve import grpc_client, process
from model.serving.torchserve.archives import add_archive
from model.serving.torchserve.config import (
    PROFILES,
    Layout,
    Ports,
    TorchServeError,
    profile_path,
    read_properties,
    render,
)
from model.serving.torchserve.management import Management, ModelVersion, Server, error_text, no_answer

DEFAULT_RUN_DIR: Final = "out/torchserve"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m model.serving.torchserve`; gives the exit code."""
    args = _parser().parse_args(argv)
    layout = Layout(Path(args.run_dir).resolve())
    try:
        return int(args.run(args, layout))
    except (TorchServeError, ArtifactError) as error:
        print(f"model.serving.torchserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("model.serving.torchserve: interrupted", file=sys.stderr)
        # As a shell tells it.
        return 128 + (error.args[0] if error.args else signal.SIGINT)


def _start(args: argparse.Namespace, layout: Layout) -> int:
    lack = process.missing()
    if lack:
        raise TorchServeError(lack)
    sources = args.model or [os.environ[name] for name in (ENV_MODEL,) if os.environ.get(name)]
    if not sources:
        raise TorchServeError(f"no model: give --model DIR or set {ENV_MODEL} to the artifact directory")
    properties = read_properties(profile_path(args.config))
    if args.tokens is not None:
        properties["disable_token_authorization"] = "false" if args.tokens else "true"
    if args.host:
        properties["host"] = args.host
    ports = Ports(**{field.name: getattr(args, f"{field.name}_port") for field in fields(Ports)})
    # A wrong setting must not touch what is there.
    render(properties, layout, ports, (), args.workers, args.allowed_url)
    if process.find_process(layout) is not None:
        raise TorchServeError(f"--run_dir {layout.root}: a TorchServe runs already; stop it first")
    layout.prepare()
    archives = [add_archive(source, layout) for source in sources]
    text = render(properties, layout, ports, archives, args.workers, args.allowed_url)
    layout.config.write_text(text, encoding="utf-8")
    print(f"Starting TorchServe in {layout.root}", file=sys.stderr)

    def leave(signum: int, frame: FrameType | None) -> None:
        # Another one must not interrupt the clearing up.
        signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt(signum)

    # From before the start on: whoever ends this program while it waits must not leave a server behind.
    signal.signal(signal.SIGTERM, leave)
    launcher, models = process.start(layout, args.timeout)
    if not args.foreground:
        _print_status(process.server_of(layout), models, args.format)
        return 0
    try:
        _print_status(process.server_of(layout), models, args.format)
        sys.stdout.flush()
        return launcher.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.stop(layout)


def _stop(args: argparse.Namespace, layout: Layout) -> int:
    print("TorchServe has stopped" if process.stop(layout) else f"No TorchServe runs in {layout.root}")
    return 0


def _status(args: argparse.Namespace, layout: Layout) -> int:
    server = _server(args, layout)
    models = Management(server).models()
    _print_status(server, models, args.format)
    ready = models and all(model.ready >= max(1, model.min_workers) for model in models)
    return 0 if ready else 1


def _register(args: argparse.Namespace, layout: Layout) -> int:
    management = Management(_server(args, layout))
    url = args.url or add_archive(args.model, layout)
    print(management.register(url, args.workers, args.name))
    return 0


def _scale(args: argparse.Namespace, layout: Layout) -> int:
    print(Management(_server(args, layout)).scale(args.name, args.version, args.workers))
    return 0


def _set_default(args: argparse.Namespace, layout: Layout) -> int:
    print(Management(_server(args, layout)).set_default(args.name, args.version))
    return 0


def _unregister(args: argparse.Namespace, layout: Layout) -> int:
    print(Management(_server(args, layout)).unregister(args.name, args.version))
    return 0


def _token(args: argparse.Namespace, layout: Layout) -> int:
    server = _server(args, layout)
    Management(server).new_token(args.type)
    print(f"New {args.type} key in {server.key_file}")
    return 0


def _predict(args: argparse.Namespace, layout: Layout) -> int:
    server = _server(args, layout, "grpc_address" if args.grpc else "inference")
    try:
        body = sys.stdin.buffer.read() if args.input == "-" else Path(args.input).read_bytes()
    except OSError as error:
        raise TorchServeError(f"--input {args.input}: {error.strerror}; give a file, or -") from error
    if args.grpc:
        answer = grpc_client.predict(server.grpc, body, args.name, args.version, server.key("inference"))
    else:
        url = f"{server.inference}/predictions/{args.name}" + (f"/{args.version}" if args.version else "")
        headers = {**server.headers("inference"), "Content-Type": "application/json"}
        try:
            with direct(requests.Session()) as session:
                response = session.post(url, body, headers=headers, timeout=60)
        except requests.RequestException as error:
            raise no_answer(url, error) from error
        if response.status_code != 200:
            raise TorchServeError(f"{url}: {response.status_code} {error_text(response.content)}")
        answer = response.content
    print(answer.decode())
    return 0


def _server(args: argparse.Namespace, layout: Layout, needed: str = "management") -> Server:
    """The server of the run directory, or the one elsewhere that the flags describe.

    Raises:
      TorchServeError: some of the flags are given, and not the one of the API that is `needed`.
    """
    given = [name for name in ("management", "inference", "grpc_address", "key_file") if getattr(args, name)]
    if not given:
        return process.server_of(layout)
    if needed not in given:
        raise TorchServeError(f"--{given[0]} is for a server elsewhere: give its --{needed}, too")
    key_file = Path(args.key_file) if args.key_file else None
    inference, management = ((url or "").rstrip("/") for url in (args.inference, args.management))
    return Server(inference, management, "", args.grpc_address or "", key_file)


def _print_status(server: Server, models: Sequence[ModelVersion], form: str) -> None:
    if form == "json":
        addresses = {name: str(value) for name, value in asdict(server).items() if value is not None}
        print(json.dumps({"server": addresses, "models": [asdict(model) for model in models]}, indent=2))
        return
    # Of a server elsewhere only those addresses are known that were given.
    print(f"inference   {server.inference or 'not given'}   gRPC {server.grpc or 'not given'}")
    print(f"management  {server.management}")
    print(f"metrics     {server.metrics + '/metrics' if server.metrics else 'not given'}")
    print(f"keys        {server.key_file or 'none needed (tokens are off)'}")
    for model in models:
        mark = "  (default)" if model.default else ""
        print(f"{model.name} {model.version}: {model.ready} of {model.workers} workers ready{mark}")


def _from(least: int) -> Callable[[str], int]:
    """Reads a whole number from `least` on; argparse tells the flag when it is none."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.serving.torchserve",
        description="Run TorchServe and talk to it.",
        epilog="Example: python -m model.serving.torchserve start --model out/model",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--run_dir",
        default=DEFAULT_RUN_DIR,
        help="directory of the server: configuration, model store, keys, logs (default: %(default)s)",
    )
    common.add_argument("--format", choices=("text", "json"), default="text", help="default: %(default)s")
    remote = argparse.ArgumentParser(add_help=False, parents=[common])
    remote.add_argument(
        "--management", metavar="URL", help="management API of a server elsewhere, in place of --run_dir"
    )
    remote.add_argument("--inference", metavar="URL", help="its inference API, for predict")
    remote.add_argument(
        "--grpc_address", metavar="HOST:PORT", help="its gRPC inference API, for predict --grpc"
    )
    remote.add_argument("--key_file", metavar="FILE", help="a copy of its key_file.json")
    _add_start(commands, common)
    stop = commands.add_parser("stop", parents=[common], help="end the server and its workers")
    stop.set_defaults(run=_stop)
    status = commands.add_parser(
        "status", parents=[remote], help="models, versions, workers; exit code 1 unless all are ready"
    )
    status.set_defaults(run=_status)
    register = commands.add_parser("register", parents=[remote], help="add a model or a version of one")
    source = register.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="DIR", help="artifact directory, local or gs://, or a .mar file")
    source.add_argument("--url", help="an archive that the server fetches; allowed_urls must let it through")
    register.add_argument("--name", help="name of the model (default: the archive's own)")
    register.add_argument(
        "--workers", type=_from(0), default=1, help="worker processes (default: %(default)s)"
    )
    register.set_defaults(run=_register)
    version = argparse.ArgumentParser(add_help=False)
    version.add_argument("--name", default=MODEL_NAME, help="name of the model (default: %(default)s)")
    scale = commands.add_parser("scale", parents=[remote, version], help="set the number of workers")
    scale.add_argument("--version", help="version to scale (default: the default version)")
    scale.add_argument(
        "--workers", type=_from(0), required=True, help="worker processes; 0 pauses the version"
    )
    scale.set_defaults(run=_scale)
    default = commands.add_parser(
        "set-default", parents=[remote, version], help="choose the version for requests that name none"
    )
    default.add_argument("--version", required=True, help="a registered version")
    default.set_defaults(run=_set_default)
    unregister = commands.add_parser("unregister", parents=[remote, version], help="take a version out")
    unregister.add_argument("--version", help="version to take out (default: the default version)")
    unregister.set_defaults(run=_unregister)
    token = commands.add_parser("token", parents=[remote], help="replace a key before it expires")
    token.add_argument("--type", choices=("inference", "management"), default="inference")
    token.set_defaults(run=_token)
    predict = commands.add_parser("predict", parents=[remote, version], help="send one request")
    predict.add_argument("--version", help="version to ask (default: the default version)")
    predict.add_argument("--input", default="-", help="file with the JSON request; - reads standard input")
    predict.add_argument("--grpc", action="store_true", help="over gRPC in place of REST")
    predict.set_defaults(run=_predict)
    return parser


def _add_start(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    start = commands.add_parser("start", parents=[common], help="start the server and wait until it is ready")
    start.add_argument(
        "--model",
        action="append",
        metavar="DIR",
        help="artifact directory, local or gs://, or a .mar file; may be given again for more models "
        f"(default: the environment's {ENV_MODEL})",
    )
    start.add_argument(
        "--config",
        default=PROFILES[0],
        help="local, cloud, or a properties file of your own (default: %(default)s)",
    )
    start.add_argument("--host", help="address of inference and metrics, in place of the configuration's")
    start.add_argument(
        "--tokens",
        action=argparse.BooleanOptionalAction,
        help="ask callers for a key; off is for loopback only (default: as configured)",
    )
    for field in fields(Ports):
        name = field.name.replace("_", " ")
        start.add_argument(
            f"--{field.name}_port",
            type=_from(1),
            default=field.default,
            help=f"{name} (default: %(default)s)",
        )
    start.add_argument(
        "--workers",
        type=_from(1),
        default=usable_cores(),
        help="workers a model (default: one a core, %(default)s here)",
    )
    start.add_argument(
        "--allowed_url",
        action="append",
        default=[],
        metavar="REGEX",
        help="further URLs from which models may be registered; the model store always may",
    )
    start.add_argument("--timeout", type=float, default=120, help="seconds to become ready (default: 120)")
    start.add_argument(
        "--foreground", action="store_true", help="stay until the server ends, as in a container"
    )
    start.set_defaults(run=_start)


if __name__ == "__main__":
    sys.exit(main())
