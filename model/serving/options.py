"""Options of the server: flags of the command line over the environment that Vertex AI sets."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from common.options import OptionError, option
from common.values import at_least

DEFAULT_PORT: Final = 8080
DEFAULT_HEALTH_ROUTE: Final = "/health"
DEFAULT_PREDICT_ROUTE: Final = "/predict"
DEFAULT_MAX_BODY_BYTES: Final = 10_000_000
"""The limit of a dedicated endpoint of Vertex AI; a shared one stops at 1.5 MB before the container."""
DEFAULT_MAX_ANSWER_BYTES: Final = 64_000_000
DEFAULT_MAX_ROWS: Final = 20_000
DEFAULT_MAX_WAIT_MILLIS: Final = 500
DEFAULT_CLIENT_SECONDS: Final = 30
DEFAULT_LAME_DUCK_SECONDS: Final = 5
DEFAULT_REFRESH_SECONDS: Final = 0

ENV_MODEL: Final = "AIP_STORAGE_URI"
VARIABLES: Final[Mapping[str, str]] = {
    "model": ENV_MODEL,
    "port": "AIP_HTTP_PORT",
    "health_route": "AIP_HEALTH_ROUTE",
    "predict_route": "AIP_PREDICT_ROUTE",
    "max_body_bytes": "MAX_BODY_BYTES",
    "max_answer_bytes": "MAX_ANSWER_BYTES",
    "max_rows": "MAX_ROWS",
    "max_wait_millis": "MAX_WAIT_MILLIS",
    "client_seconds": "CLIENT_SECONDS",
    "lame_duck_seconds": "LAME_DUCK_SECONDS",
    "model_refresh_seconds": "MODEL_REFRESH_SECONDS",
    "workers": "WEB_CONCURRENCY",
    "access_log": "ACCESS_LOG",
    "request_id": "REQUEST_ID",
}
"""The environment variable of each option."""
NUMBERS: Final = {
    "port": at_least(1, 65535),
    "max_body_bytes": at_least(1),
    "max_answer_bytes": at_least(1),
    "max_rows": at_least(1),
    "max_wait_millis": at_least(1),
    "client_seconds": at_least(1),
    "lame_duck_seconds": at_least(0),
    "model_refresh_seconds": at_least(0, 86_400),
    "workers": at_least(1),
}
SWITCHES: Final = ("access_log", "request_id")
FLAGS: Final = ("model", *NUMBERS, *SWITCHES)


@dataclass(frozen=True)
class ServerOptions:
    """Options of one server.

    Attributes:
      model: artifact directory, local or gs://.
      port: TCP port to listen on.
      health_route: path of the health check, beside Vertex AI's default one.
      predict_route: path of predictions, beside Vertex AI's default one.
      max_body_bytes: longer request bodies are refused with 413.
      max_answer_bytes: requests whose answer would be longer, by estimate, are refused with 413.
      max_rows: requests with more instances are refused with 413.
      max_wait_millis: a request that has waited longer for its turn is refused with 503.
      client_seconds: after this time, or twice as much, a client is cut that has not sent all of its
        request, or not read all of its answer.
      lame_duck_seconds: the server goes on for this time after SIGTERM, with health 503.
      model_refresh_seconds: between two looks for a new model; 0 keeps the first.
      workers: server processes; each loads the model and runs it on one thread.
      access_log: writes a line of JSON for each request to stdout.
      request_id: answers have the header X-Request-Id: that of the request, otherwise a new one.
    """

    model: str = option("", metavar="DIR", help=f"artifact directory, local or gs:// (default: {ENV_MODEL})")
    port: int = option(
        DEFAULT_PORT,
        type=NUMBERS["port"],
        help=f"port to listen on (default: AIP_HTTP_PORT, or {DEFAULT_PORT})",
    )
    health_route: str = DEFAULT_HEALTH_ROUTE
    predict_route: str = DEFAULT_PREDICT_ROUTE
    max_body_bytes: int = option(
        DEFAULT_MAX_BODY_BYTES,
        type=NUMBERS["max_body_bytes"],
        help=f"longer bodies are refused with 413 (default: MAX_BODY_BYTES, or {DEFAULT_MAX_BODY_BYTES})",
    )
    max_answer_bytes: int = option(
        DEFAULT_MAX_ANSWER_BYTES,
        type=NUMBERS["max_answer_bytes"],
        help="requests with a longer answer, by estimate, are refused with 413 (default: MAX_ANSWER_BYTES, "
        f"or {DEFAULT_MAX_ANSWER_BYTES})",
    )
    max_rows: int = option(
        DEFAULT_MAX_ROWS,
        type=NUMBERS["max_rows"],
        help=f"requests with more instances are refused with 413 (default: MAX_ROWS, or {DEFAULT_MAX_ROWS})",
    )
    max_wait_millis: int = option(
        DEFAULT_MAX_WAIT_MILLIS,
        type=NUMBERS["max_wait_millis"],
        help="a request that has waited longer for its turn is refused with 503 and Retry-After (default: "
        f"MAX_WAIT_MILLIS, or {DEFAULT_MAX_WAIT_MILLIS})",
    )
    client_seconds: int = option(
        DEFAULT_CLIENT_SECONDS,
        type=NUMBERS["client_seconds"],
        help="a client that needs longer, or twice as long, to send a request or to read an answer loses its "
        f"connection (default: CLIENT_SECONDS, or {DEFAULT_CLIENT_SECONDS})",
    )
    lame_duck_seconds: int = option(
        DEFAULT_LAME_DUCK_SECONDS,
        type=NUMBERS["lame_duck_seconds"],
        help="seconds for which the server goes on after SIGTERM, with its health check at 503, so that a "
        f"load balancer turns away (default: LAME_DUCK_SECONDS, or {DEFAULT_LAME_DUCK_SECONDS})",
    )
    model_refresh_seconds: int = option(
        DEFAULT_REFRESH_SECONDS,
        type=NUMBERS["model_refresh_seconds"],
        metavar="N",
        help="look for a new model in --model every so many seconds, and serve it from then on; it must have "
        "the same feature spec, and anomaly model promote puts it there (default: MODEL_REFRESH_SECONDS, or "
        f"{DEFAULT_REFRESH_SECONDS}: never)",
    )
    workers: int = option(
        1, type=NUMBERS["workers"], help="server processes (default: WEB_CONCURRENCY, or one a core)"
    )
    access_log: bool = option(
        False, help="write a line of JSON for each request to stdout (default: ACCESS_LOG=1, or no)"
    )
    request_id: bool = option(
        False,
        help="answer with the X-Request-Id of the request, or with a new one (default: REQUEST_ID=1, or no)",
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise OptionError(f"--model: expected an artifact directory, or {ENV_MODEL} in the environment")
        for name in ("health_route", "predict_route"):
            if not getattr(self, name).startswith("/"):
                raise OptionError(
                    f"{VARIABLES[name]}: expected a path that starts with /, got {getattr(self, name)!r}"
                )
        if self.health_route == self.predict_route:
            both = f"{VARIABLES['health_route']} and {VARIABLES['predict_route']}"
            raise OptionError(f"{both}: expected two paths, got {self.health_route!r} for both")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **flags: Any) -> ServerOptions:
        """Reads the options from the environment, with the flags in place of their variables.

        Args:
          env: `os.environ` when not given.
          flags: values by the names of the options; None for a flag that is absent.

        Raises:
          OptionError: a variable is missing or wrong.
        """
        env = os.environ if env is None else env
        values: dict[str, Any] = {"workers": usable_cores()}
        for name, variable in VARIABLES.items():
            if flags.get(name) is not None:
                values[name] = flags[name]
            elif env.get(variable):
                values[name] = _value(name, env[variable])
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """The environment that `from_env` reads back; by it the options reach worker processes."""
        values = asdict(self).items()
        return {VARIABLES[name]: str(int(value) if name in SWITCHES else value) for name, value in values}


def _value(name: str, text: str) -> Any:
    if name in SWITCHES:
        if text not in ("0", "1"):
            raise OptionError(f"{VARIABLES[name]}: expected 0 or 1, got {text!r}")
        return text == "1"
    if name not in NUMBERS:
        return text
    try:
        return NUMBERS[name](text)
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"{VARIABLES[name]}: {error}") from None


def usable_cores() -> int:
    """Counts the cores that this process may use: those of its CPU set and quota, not of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cpu_quota() or cores)


def cpu_quota(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Reads the CPU quota of this process in whole cores, rounded up; None where there is none.

    Args:
      mount: where control groups are mounted, version 2 or 1.
      own: the file that names the groups of this process.
    """
    limits = [limit for limit in map(_limit, _groups(mount, own)) if limit is not None]
    return max(1, math.ceil(min(limits))) if limits else None


def _groups(mount: Path, own: Path) -> Iterator[Path]:
    """The directories with the limits: of this process's group, and of all above, which bind it as well."""
    # A container sees its own group at the mount itself, whatever its path is.
    yield from (mount, mount / "cpu")
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            root = mount / "cpu" if controllers else mount
            group = root / path.lstrip("/")
            yield from (above for above in (group, *group.parents) if root in above.parents)


def _limit(group: Path) -> float | None:
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        limit = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None
    return limit if limit > 0 else None  # -1 in version 1
