"""Runs TorchServe with a model, and asks it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import requests

from common.command import Parser, command
from common.connections import direct
from common.options import OptionError, add_options, option, read_options
from common.output import Format, add_format, print_rows
from common.values import Number, at_least
from common.writing import write_text
from model.artifact import MODEL_NAME
from model.serving.options import ENV_MODEL, usable_cores
from model.serving.torchserve import grpc_client, keys, process
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
from model.serving.torchserve.management import ModelVersion, Server, error_text, list_models, no_answer

EXAMPLES: Final = """
  anomaly torchserve start --model out/model
  anomaly torchserve status
  anomaly torchserve predict --input request.json
  anomaly torchserve stop
"""
MANAGEMENT: Final = """\
The management API of the server does the rest. Where tokens are on, export one first and send it with
-H "Authorization: Bearer $KEY":
  export KEY=$(jq -r .management.key out/torchserve/key_file.json)

register a version, or another model by &model_name=NAME:
  cp out/newer/pytorch_autoencoder.mar out/torchserve/model_store/newer.mar
  curl -f -X POST "http://127.0.0.1:8081/models?url=newer.mar&initial_workers=1&synchronous=true"
set the number of workers:
  curl -f -X PUT "http://127.0.0.1:8081/models/pytorch_autoencoder?min_worker=2&max_worker=2&synchronous=true"
choose the version for requests that name none:
  curl -f -X PUT http://127.0.0.1:8081/models/pytorch_autoencoder/20260202.080000/set-default
take a version out of service:
  curl -f -X DELETE http://127.0.0.1:8081/models/pytorch_autoencoder/20260101.120000
replace a key before it expires, with the key of .API.key in place of .management.key:
  curl -f "http://127.0.0.1:8081/token?type=inference"
"""
"""A test runs these lines against a server."""
PREDICT_SECONDS: Final = 60


@dataclass(frozen=True)
class RunOptions:
    """The place of one server."""

    run_dir: Path = option(
        Path("out/torchserve"),
        type=Path,
        metavar="DIR",
        help="directory of the server: configuration, model store, keys, logs (default: %(default)s)",
    )


@dataclass(frozen=True)
class StartOptions:
    """Options of a start."""

    model: tuple[str, ...] = option(
        (),
        action="append",
        metavar="DIR",
        help="artifact directory, local or gs://, or a .mar file; may be repeated for more models "
        f"(default: the environment's {ENV_MODEL})",
    )
    config: str = option(
        PROFILES[0],
        metavar="FILE",
        help="local, cloud, or a properties file of your own (default: %(default)s)",
    )
    host: str | None = option(None, help="address of inference and metrics, in place of the configuration's")
    tokens: bool | None = option(
        None, help="ask callers for a key; off is for loopback only (default: as configured)"
    )
    key_file: Path | None = option(
        None,
        type=Path,
        metavar="FILE",
        help="keys to ask callers for, in the form of TorchServe's key_file.json (default: new ones at each "
        "start); needs a JDK",
    )
    authorised_elsewhere: bool = option(
        False,
        help="no tokens, also for other machines: something in front of the server authorises callers, such "
        "as IAM on Cloud Run",
    )
    workers: int = option(
        usable_cores(), type=at_least(1), help="workers a model (default: one a core, %(default)s here)"
    )
    allowed_url: tuple[str, ...] = option(
        (),
        action="append",
        metavar="REGEX",
        help="further URLs from which models may be registered; the model store always may",
    )
    timeout: float = option(
        120.0,
        type=Number(1, whole=False),
        metavar="SECONDS",
        help="time to become ready (default: %(default)s)",
    )
    foreground: bool = option(False, help="stay until the server ends, as in a container")

    def __post_init__(self) -> None:
        if self.authorised_elsewhere and (self.tokens or self.key_file):
            raise OptionError("--authorised_elsewhere, --tokens, --key_file: expected no tokens, or tokens")
        if self.key_file and self.tokens is False:
            raise OptionError("--key_file, --no_tokens: expected one of them")

    @property
    def asks_for_tokens(self) -> bool | None:
        """The choice of these options; None where it is the configuration's."""
        if self.authorised_elsewhere:
            return False
        return True if self.key_file else self.tokens


@dataclass(frozen=True)
class AddressOptions:
    """Addresses of a server elsewhere, in place of a run directory."""

    management: str | None = option(
        None, metavar="URL", help="management API of a server elsewhere, in place of --run_dir"
    )
    inference: str | None = option(None, metavar="URL", help="its inference API, for predict")
    grpc_address: str | None = option(
        None, metavar="HOST:PORT", help="its gRPC inference API, for predict --grpc"
    )
    key_file: Path | None = option(None, type=Path, metavar="FILE", help="a copy of its key_file.json")

    def server(self, layout: Layout, needed: str = "management") -> Server:
        """Makes the server that the flags describe, or without them the one of the run directory.

        Raises:
          OptionError: some flags are there, and the one of the API that is `needed` is not.
        """
        present = [name for name, value in vars(self).items() if value]
        if not present:
            return process.server_of(layout)
        if needed not in present:
            raise OptionError(f"--{needed}: expected the address of a server elsewhere with --{present[0]}")
        inference, management = ((url or "").rstrip("/") for url in (self.inference, self.management))
        return Server(inference, management, "", self.grpc_address or "", self.key_file)


@dataclass(frozen=True)
class PredictOptions:
    """Options of a request."""

    name: str = option(MODEL_NAME, help="name of the model (default: %(default)s)")
    version: str | None = option(None, help="version to ask (default: the default version)")
    input: str = option(
        "-", metavar="FILE", help="file with the JSON request; - reads standard input (default: %(default)s)"
    )
    grpc: bool = option(False, help="over gRPC in place of REST")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly torchserve`."""
    args = _parser().parse_args(argv)
    layout = Layout(read_options(RunOptions, args).run_dir.resolve())
    if args.command == "start":
        return start(layout, read_options(StartOptions, args), read_options(Ports, args), args.format)
    if args.command == "stop":
        print("TorchServe has stopped" if process.stop(layout) else f"No TorchServe runs in {layout.root}")
        return 0
    addresses = read_options(AddressOptions, args)
    if args.command == "status":
        return status(addresses.server(layout), args.format)
    options = read_options(PredictOptions, args)
    print(
        predict(addresses.server(layout, "grpc_address" if options.grpc else "inference"), options).decode()
    )
    return 0


def start(layout: Layout, options: StartOptions, ports: Ports, form: Format) -> int:
    """Starts a server and waits until its models are ready; in the foreground, until it ends.

    Returns:
      The exit status.

    Raises:
      TorchServeError: see `process.start`.
      OptionError: there is no model.
    """
    missing = process.missing_software()
    if missing:
        raise TorchServeError(missing)
    sources = options.model or tuple(filter(None, (os.environ.get(ENV_MODEL),)))
    if not sources:
        raise OptionError(f"--model: expected an artifact directory, or {ENV_MODEL} in the environment")
    properties = read_properties(profile_path(options.config))
    if options.asks_for_tokens is not None:
        properties["disable_token_authorization"] = "false" if options.asks_for_tokens else "true"
    if options.host:
        properties["host"] = options.host
    given = keys.read_keys(options.key_file) if options.key_file else None

    def configuration(archives: Sequence[str]) -> str:
        return render(
            properties,
            layout,
            ports,
            archives,
            options.workers,
            options.allowed_url,
            options.authorised_elsewhere,
        )

    # A wrong option must not touch the files of an earlier server.
    configuration(())
    if process.find_process(layout) is not None:
        raise TorchServeError(f"--run_dir {layout.root}: a TorchServe runs already; stop it first")
    layout.prepare()
    archives = [add_archive(source, layout) for source in sources]
    layout.given_keys.unlink(missing_ok=True)
    if given is not None:
        # With an asterisk, TorchServe takes it as a class path, which may have several parts.
        folders = (properties.get("plugins_path"), str(keys.install(given, layout)))
        paths = (path if "*" in path else f"{path}/*" for path in folders if path)
        properties["plugins_path"] = ":".join(paths)
    write_text(layout.config, configuration(archives), "--run_dir")
    print(f"Starting TorchServe in {layout.root}", file=sys.stderr)

    def end(signum: int, frame: FrameType | None) -> None:
        # Another signal must not interrupt the cleaning up.
        signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt(signum)

    # From before the start on: a program that is ended while it waits must not leave a server behind.
    signal.signal(signal.SIGTERM, end)
    try:
        launcher, models = process.start(layout, options.timeout, options.foreground)
    except KeyboardInterrupt as error:
        print("error: interrupted", file=sys.stderr)
        # The status that a shell shows for a program that a signal ended.
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    if not options.foreground:
        print_status(process.server_of(layout), models, form)
        return 0
    try:
        print_status(process.server_of(layout), models, form)
        sys.stdout.flush()
        return launcher.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.stop(layout)


def status(server: Server, form: Format) -> int:
    """Prints the models of a server; 0 when all their workers are ready, otherwise 1."""
    models = list_models(server)
    print_status(server, models, form)
    return 0 if models and all(model.is_ready for model in models) else 1


def predict(server: Server, options: PredictOptions) -> bytes:
    """Sends one request and returns the body of the answer.

    Raises:
      TorchServeError: there is no request, or the server refuses it or does not answer.
    """
    try:
        body = sys.stdin.buffer.read() if options.input == "-" else Path(options.input).read_bytes()
    except OSError as error:
        raise TorchServeError(
            f"--input: expected a file or -, got {options.input!r}: {error.strerror}"
        ) from error
    if options.grpc:
        key = server.key("inference")
        return grpc_client.predict(server.grpc, body, options.name, options.version, key, PREDICT_SECONDS)
    url = f"{server.inference}/predictions/{options.name}"
    url += f"/{options.version}" if options.version else ""
    headers = {**server.headers("inference"), "Content-Type": "application/json"}
    try:
        with direct(requests.Session()) as session:
            response = session.post(url, body, headers=headers, timeout=PREDICT_SECONDS)
    except requests.RequestException as error:
        raise no_answer(url, error) from error
    if response.status_code != 200:
        raise TorchServeError(f"{url}: {response.status_code} {error_text(response.content)}")
    return response.content


def print_status(server: Server, models: Sequence[ModelVersion], form: Format) -> None:
    """Prints the models of a server, and for people its addresses."""
    if form == "table":
        # Of a server elsewhere only the addresses are known that its caller has passed.
        print(f"inference   {server.inference or 'not known'}")
        print(f"gRPC        {server.grpc or 'not known'}")
        print(f"management  {server.management}")
        print(f"metrics     {server.metrics + '/metrics' if server.metrics else 'not known'}")
        print(f"keys        {server.key_file or 'none needed (tokens are off)'}\n")
    print_rows([asdict(model) for model in models], form, "No models.")


def _parser() -> Parser:
    parser = Parser("anomaly torchserve", f"{__doc__}\n\n{MANAGEMENT}", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str, *groups: type) -> Any:
        subparser = commands.add_parser(name, help=text, description=text, examples=f"  {example}")
        for group in (RunOptions, *groups):
            add_options(subparser, group)
        return subparser

    add_format(
        add(
            "start",
            "start the server and wait until it is ready",
            "anomaly torchserve start --model out/model --tokens --workers 2",
            StartOptions,
            Ports,
        )
    )
    add("stop", "end the server and its workers", "anomaly torchserve stop")
    add_format(
        add(
            "status",
            "models, versions, workers; exit status 1 unless all are ready",
            "anomaly torchserve status --format json",
            AddressOptions,
        )
    )
    add(
        "predict",
        "send one request",
        "anomaly torchserve predict --input request.json --grpc",
        PredictOptions,
        AddressOptions,
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
