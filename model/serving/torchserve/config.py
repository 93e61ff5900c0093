"""The configuration of one TorchServe: a properties file with addresses, models and limits filled in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.command import CommandError
from common.loopback import is_loopback
from common.options import option
from common.values import at_least

PROFILES: Final = ("local", "cloud")
_HOST_KEYS: Final = ("host", "management_host")
_ADDRESSES: Final = {
    "inference_address": "host= or --host, and --inference_port",
    "management_address": "management_host=, and --management_port",
    "metrics_address": "host= or --host, and --metrics_port",
    "grpc_inference_address": "host= or --host",
    "grpc_inference_port": "--grpc_inference_port",
    "grpc_management_address": "management_host=",
    "grpc_management_port": "--grpc_management_port",
}
"""Keys that `render` writes itself, and the way to choose each."""
_TOKENS_OFF: Final = "disable_token_authorization"
_PORT: Final = at_least(1, 65535)
_KEY: Final = re.compile(r"[A-Za-z0-9_.-]+")
MAX_SOCKET_PATH: Final = 100
"""Unix sockets of the workers lie under the run directory; the kernel takes 107 bytes of path."""


class TorchServeError(CommandError):
    """TorchServe cannot be configured, started or called."""


def _port(number: int, purpose: str) -> int:
    return option(number, type=_PORT, metavar="PORT", help=f"port of {purpose} (default: %(default)s)")


@dataclass(frozen=True)
class Ports:
    """The five TCP ports of one server, each a flag."""

    inference_port: int = _port(8080, "REST inference")
    management_port: int = _port(8081, "REST management")
    metrics_port: int = _port(8082, "metrics")
    grpc_inference_port: int = _port(7070, "gRPC inference")
    grpc_management_port: int = _port(7071, "gRPC management")


@dataclass(frozen=True)
class Layout:
    """The files of one server.

    Attributes:
      root: the run directory.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The properties file that the server reads."""
        return self.root / "config.properties"

    @property
    def model_store(self) -> Path:
        """The archives that may be registered by name."""
        return self.root / "model_store"

    @property
    def temporary(self) -> Path:
        """Unpacked models and the sockets of the workers."""
        return self.root / "tmp"

    @property
    def logs(self) -> Path:
        """TorchServe's log files."""
        return self.root / "logs"

    @property
    def output(self) -> Path:
        """The output of Java and the launcher before the log begins; the log is in `logs`."""
        return self.root / "console.log"

    @property
    def log_config(self) -> Path:
        """The configuration of the log that the server reads."""
        return self.root / "log4j2.xml"

    @property
    def key_file(self) -> Path:
        """The tokens that the server takes; absent when tokens are off."""
        return self.root / "key_file.json"

    @property
    def given_keys(self) -> Path:
        """The keys of `--key_file`; absent where the server makes its own."""
        return self.root / "given_keys.json"

    @property
    def plugins(self) -> Path:
        """The plugin that gives TorchServe the keys of `--key_file`."""
        return self.root / "plugins"

    @property
    def state(self) -> Path:
        """Process id and addresses of the running server, as JSON."""
        return self.root / "server.json"

    def prepare(self) -> None:
        """Makes the directories.

        Raises:
          TorchServeError: the path of the run directory is too long for Unix sockets.
        """
        if len(str(self.temporary / ".ts.sock.9000")) > MAX_SOCKET_PATH:
            raise TorchServeError(
                f"--run_dir {self.root}: the path is too long for Unix sockets; use a shorter one"
            )
        # Keys and sockets are for the owner alone.
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in (self.model_store, self.temporary, self.logs):
            directory.mkdir(exist_ok=True)


def read_properties(path: Path) -> dict[str, str]:
    """Reads the keys and values of a properties file, without its comments.

    Raises:
      TorchServeError: no such file, or a line without `=`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TorchServeError(
            f"--config: expected local, cloud or a properties file, got {str(path)!r}: {error.strerror}"
        ) from error
    properties = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith(("#", "!")):
            key, equals, value = line.partition("=")
            # Java would read an escaped key as another one, which none of our checks has seen.
            if not equals or not _KEY.fullmatch(key.strip()):
                raise TorchServeError(f"{path}:{number}: expected key=value, got {line.strip()!r}")
            properties[key.strip()] = value.strip()
    return properties


def tokens_off(properties: dict[str, str]) -> bool:
    """Tells whether callers need no key. TorchServe reads `TRUE` as it reads `true`, and so does this.

    Raises:
      TorchServeError: the value is neither true nor false.
    """
    value = properties.get(_TOKENS_OFF, "false")
    word = value.strip().lower()
    if word not in ("true", "false"):
        raise TorchServeError(
            f"{_TOKENS_OFF}: expected true or false, got {value!r}, or --tokens or --no_tokens"
        )
    return word == "true"


def uses_tls(properties: dict[str, str]) -> bool:
    """Tells whether the properties name a certificate.

    Raises:
      TorchServeError: a key without its certificate, or the other way round.
    """
    key, certificate = (bool(properties.get(name)) for name in ("private_key_file", "certificate_file"))
    if key != certificate:
        # TorchServe would make a certificate of its own, and not say so.
        raise TorchServeError("private_key_file and certificate_file go together: name both, or a keystore")
    return key or bool(properties.get("keystore"))


def profile_path(name: str) -> Path:
    """Finds the file of one of PROFILES; any other name is the path itself."""
    return Path(__file__).with_name(f"{name}.properties") if name in PROFILES else Path(name)


def render(
    properties: dict[str, str],
    layout: Layout,
    ports: Ports,
    archives: Iterable[str],
    workers: int,
    allowed_urls: Iterable[str] = (),
    authorised_elsewhere: bool = False,
) -> str:
    """Renders the text of the configuration file.

    Args:
      properties: of a profile; `host` and `management_host` become the addresses, with https where there is
        a certificate.
      layout: where the server keeps its files.
      ports: its ports.
      archives: file names in the model store to load at the start.
      workers: processes for each model.
      allowed_urls: regular expressions of further URLs from which models may be registered; the model
        store is always allowed, and nothing beyond.
      authorised_elsewhere: something in front of the server authorises callers, so that inference without
        tokens may be reached from other machines. Management may not.

    Raises:
      TorchServeError: tokens are off and an address is not loopback, or a setting is not valid.
    """
    for key, instead in _ADDRESSES.items():
        if key in properties:
            raise TorchServeError(f"{key}={properties[key]}: leave it out, and choose it by {instead}")
    host = properties.get("host", "127.0.0.1")
    management = properties.get("management_host", host)
    no_tokens = tokens_off(properties)
    for name, address in (("host", host), ("management_host", management)):
        if no_tokens and not is_loopback(address) and not (authorised_elsewhere and name == "host"):
            instead = "pass --authorised_elsewhere if something in front of the server authorises callers, "
            raise TorchServeError(
                f"{name}={address} can be reached from other machines: disable_token_authorization=true is "
                "for loopback only; leave tokens on and pass the key, "
                f"{instead if name == 'host' else ''}or bind to 127.0.0.1"
            )
    outside = "https" if uses_tls(properties) else "http"
    # A certificate names the host by which others call, which is not this machine's loopback.
    inside = "http" if is_loopback(management) else outside
    # TorchServe matches the URL as it came and decodes it afterwards: no % and no further / may be in it.
    archives_of_store = rf"file://{re.escape(str(layout.model_store))}/[A-Za-z0-9_-][A-Za-z0-9._-]*\.mar"
    patterns = [archives_of_store, *allowed_urls]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise TorchServeError(f"allowed_urls: {pattern!r} is no regular expression: {error}") from error
        if "," in pattern:
            raise TorchServeError(f"allowed_urls: {pattern!r} has a comma, which separates expressions")
    values = {
        **{key: value for key, value in properties.items() if key not in _HOST_KEYS},
        _TOKENS_OFF: "true" if no_tokens else "false",
        "inference_address": f"{outside}://{host}:{ports.inference_port}",
        "management_address": f"{inside}://{management}:{ports.management_port}",
        "metrics_address": f"{outside}://{host}:{ports.metrics_port}",
        "grpc_inference_address": host,
        "grpc_inference_port": str(ports.grpc_inference_port),
        "grpc_management_address": management,
        "grpc_management_port": str(ports.grpc_management_port),
        "model_store": str(layout.model_store),
        "load_models": ",".join(archives),
        "default_workers_per_model": str(workers),
        "allowed_urls": ",".join(patterns),
    }
    # Java's properties take a backslash as an escape.
    return "".join(f"{key}={value.replace(chr(92), chr(92) * 2)}\n" for key, value in values.items())
