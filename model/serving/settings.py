"""Settings of the server: flags of the command line over the environment that Vertex AI sets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_PORT: Final = 8080
DEFAULT_HEALTH_ROUTE: Final = "/health"
DEFAULT_PREDICT_ROUTE: Final = "/predict"
DEFAULT_MAX_BODY_BYTES: Final = 10_000_000
"""What a dedicated endpoint of Vertex AI lets through; a shared one stops at 1.5 MB before the container."""

ENV_MODEL: Final = "AIP_STORAGE_URI"
ENV_PORT: Final = "AIP_HTTP_PORT"
ENV_HEALTH_ROUTE: Final = "AIP_HEALTH_ROUTE"
ENV_PREDICT_ROUTE: Final = "AIP_PREDICT_ROUTE"
ENV_MAX_BODY_BYTES: Final = "MAX_BODY_BYTES"
ENV_WORKERS: Final = "WEB_CONCURRENCY"


FLAGS: Final[Mapping[str, str]] = {
    "model": ENV_MODEL,
    "port": ENV_PORT,
    "workers": ENV_WORKERS,
    "max_body_bytes": ENV_MAX_BODY_BYTES,
}
"""The flags of the command line, and the variables that they stand in for."""


class SettingsError(ValueError):
    """A setting is missing or wrong; the text names the environment variable or the flag."""


@dataclass(frozen=True)
class Settings:
    """What one server process needs to know.

    Attributes:
      model: artifact directory, local or gs://.
      port: TCP port to listen on.
      health_route: path of the health check, besides Vertex AI's default one.
      predict_route: path of predictions, besides Vertex AI's default one.
      max_body_bytes: longer request bodies are refused with 413.
      workers: server processes; each loads the model and runs it on one thread.
    """

    model: str
    port: int = DEFAULT_PORT
    health_route: str = DEFAULT_HEALTH_ROUTE
    predict_route: str = DEFAULT_PREDICT_ROUTE
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.model:
            raise SettingsError(
                f"no model: give --model DIR or set {ENV_MODEL} to the artifact directory, local or gs://"
            )
        for name, route in ((ENV_HEALTH_ROUTE, self.health_route), (ENV_PREDICT_ROUTE, self.predict_route)):
            if not route.startswith("/"):
                raise SettingsError(f"{name}={route!r} must start with a slash")
        if self.health_route == self.predict_route:
            raise SettingsError(f"{ENV_HEALTH_ROUTE} and {ENV_PREDICT_ROUTE} are both {self.health_route!r}")
        if not 1 <= self.port <= 65535:
            raise SettingsError(f"{ENV_PORT}={self.port} is no TCP port; give 1 to 65535")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """The settings that the environment describes; `os.environ` when `env` is not given.

        Raises:
          SettingsError: a variable is missing or wrong.
        """
        env = os.environ if env is None else env
        return cls(
            model=env.get(ENV_MODEL, ""),
            port=_positive(env, ENV_PORT, DEFAULT_PORT),
            health_route=env.get(ENV_HEALTH_ROUTE) or DEFAULT_HEALTH_ROUTE,
            predict_route=env.get(ENV_PREDICT_ROUTE) or DEFAULT_PREDICT_ROUTE,
            max_body_bytes=_positive(env, ENV_MAX_BODY_BYTES, DEFAULT_MAX_BODY_BYTES),
            workers=_positive(env, ENV_WORKERS, usable_cores()),
        )

    def to_env(self) -> dict[str, str]:
        """The environment that `from_env` reads back; how settings reach worker processes."""
        return {
            ENV_MODEL: self.model,
            ENV_PORT: str(self.port),
            ENV_HEALTH_ROUTE: self.health_route,
            ENV_PREDICT_ROUTE: self.predict_route,
            ENV_MAX_BODY_BYTES: str(self.max_body_bytes),
            ENV_WORKERS: str(self.workers),
        }


def usable_cores() -> int:
    """The cores that this process may use: a container's CPU set and quota count, not the whole machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cpu_quota() or cores)


def cpu_quota(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The CPU quota of this process in whole cores, rounded up; None where there is none.

    Args:
      mount: where control groups are mounted, version 2 or 1.
      own: the file that tells the groups of this process.
    """
    limits = [limit for limit in map(_limit, _groups(mount, own)) if limit is not None]
    return max(1, math.ceil(min(limits))) if limits else None


def _groups(mount: Path, own: Path) -> Iterator[Path]:
    """The directories with the limits: of this process's group, and of all above, which bind it, too."""
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


def _positive(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise SettingsError(f"{name}={text!r} is not a whole number from 1 on")
    return int(text)
