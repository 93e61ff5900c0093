"""Addresses of this machine, and how to reach them where the environment names a proxy.

A proxy that is asked for 127.0.0.1 refuses, or looks at its own machine. So what this project opens to a
loopback address goes there directly: `urlopen` here, `common.connections` for requests and gRPC. The clients
that Google's SDKs and Beam make by themselves do so after `bypass_proxies`.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Any, Final
from urllib import request
from urllib.parse import urlsplit

NAMES: Final = ("localhost", "127.0.0.1", "::1")
"""Loopback addresses as no_proxy has them; not every library reads a range of addresses there."""

_EVERYTHING: Final = "*"
_GRPC: Final = "no_grpc_proxy"
_EXCEPTIONS: Final = {"no", "no_grpc"}
_DIRECT: Final = request.build_opener(request.ProxyHandler({}))


def is_loopback(host: str) -> bool:
    """Recognises a host that can only be this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_loopback_address(address: str) -> bool:
    """Recognises a URL, or HOST:PORT, that leads to this machine."""
    try:
        return is_loopback(urlsplit(address if "//" in address else f"//{address}").hostname or "")
    except ValueError:
        return False


def urlopen(url: str, timeout: float) -> Any:
    """Opens a URL as `urllib.request.urlopen` does, and one of this machine without a proxy."""
    # An opener of its own: urllib's global one keeps the proxies of the moment when it is first used.
    opener = _DIRECT if is_loopback_address(url) else request.build_opener()
    return opener.open(url, timeout=timeout)


def stale_variables() -> list[str]:
    """Names the variables that lead to an emulator of this machine that is gone, or to its credentials.

    A shell keeps them when `anomaly local down` has stopped the stack; every client then waits for a minute.
    """
    stale = []
    for name, value in os.environ.items():
        if name.endswith("_EMULATOR_HOST") and is_loopback_address(value):
            parts = urlsplit(value if "//" in value else f"//{value}")
            with socket.socket() as probe:
                probe.settimeout(1.0)
                if parts.port and probe.connect_ex((parts.hostname or "", parts.port)) == errno.ECONNREFUSED:
                    stale.append(name)
        elif name == "GOOGLE_APPLICATION_CREDENTIALS" and value and not os.path.exists(value):
            stale.append(name)
    return sorted(stale)


def no_proxy_variables() -> dict[str, str]:
    """Gives the variables that keep loopback addresses away from the proxies of this process's environment.

    They extend what is set. Without a proxy in the environment there are none: on macOS any variable of this
    kind hides the system's own proxy settings.

    Returns:
      no_proxy and NO_PROXY, since a library reads the one or the other. Also no_grpc_proxy where it is set,
      since gRPC then reads it alone, and where no_proxy is `*`, which gRPC does not know.
    """
    if not request.getproxies_environment().keys() - _EXCEPTIONS:
        return {}
    lower, upper = (os.environ.get(name, "").strip() for name in ("no_proxy", "NO_PROXY"))
    wanted = {"no_proxy": _extended(lower or upper), "NO_PROXY": _extended(upper or lower)}
    if _GRPC in os.environ or wanted["no_proxy"] == _EVERYTHING:
        wanted[_GRPC] = _extended(os.environ.get(_GRPC, "").strip(_EVERYTHING))
    return wanted


def bypass_proxies() -> None:
    """Sets `no_proxy_variables` in this process, for clients of Google's SDKs and of Beam, and for children.

    Meant for the start of a program: the environment belongs to whoever runs the process.
    """
    os.environ.update(no_proxy_variables())


def _extended(value: str) -> str:
    if value == _EVERYTHING:
        return value  # beside others it would count as a name
    listed = [part.strip() for part in value.split(",") if part.strip()]
    return ",".join([*listed, *(name for name in NAMES if name not in listed)])
