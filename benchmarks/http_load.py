"""A lean HTTP load generator: keep-alive connections, each with one request in flight.

A general client costs more per request than the server under test, and both share the machine's cores.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Load:
    """The figures of one measurement.

    Attributes:
      requests_per_second: answered requests over the measured time.
      p50_ms: median latency in milliseconds.
      p99_ms: 99th percentile of the latency.
      answer_bytes: length of an answer's body.
      requests: answered requests.
      refused: requests that were answered with 503; the latencies leave them out.
    """

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    answer_bytes: int
    requests: int
    refused: int = 0


REFUSED_SECONDS = 1.0
"""After an answer of 503 a connection waits for this time, as Retry-After of the container says."""


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, latencies: list[float], deadline: float, takes_refusals: bool) -> None:
        self._takes_refusals = takes_refusals
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._request = request
        self._latencies = latencies
        self._deadline = deadline
        self.refused = 0
        self._buffer = bytearray()
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end])
        start = head.lower().index(b"content-length:") + 15
        length = int(head[start : head.find(b"\r\n", start) if b"\r\n" in head[start:] else None])
        if len(self._buffer) < end + 4 + length:
            return
        now = time.perf_counter()
        if head.startswith(b"HTTP/1.1 503") and self._takes_refusals:
            self.refused += 1
            self._buffer.clear()
            if now < self._deadline:
                asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._send)
            else:
                self._end(0)
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self._fail(RuntimeError(bytes(self._buffer[:300]).decode()))
            return
        self._latencies.append(now - self._sent)
        self._buffer.clear()
        if now < self._deadline:
            self._send()
        else:
            self._end(length)

    def _end(self, length: int) -> None:
        if not self.done.done():
            self.done.set_result(length)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def http_request(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """One POST request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1"]
    known = {"Content-Type": "application/json", **(headers or {})}
    lines += [f"{name}: {value}" for name, value in known.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def measure(
    port: int, request: bytes, connections: int, seconds: float, takes_refusals: bool = False
) -> Load:
    """Sends `request` over and over on `connections` connections for `seconds`.

    Args:
      port: of the server.
      request: as `http_request` makes it.
      connections: each has one request on its way.
      seconds: length of the measurement.
      takes_refusals: counts answers of 503, and tries again after REFUSED_SECONDS.

    Raises:
      RuntimeError: an answer was not 200, and no refusal that is taken.
    """
    return asyncio.run(_measure(port, request, connections, seconds, takes_refusals))


async def _measure(port: int, request: bytes, connections: int, seconds: float, takes_refusals: bool) -> Load:
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    pairs = [
        await loop.create_connection(
            lambda: _Connection(request, latencies, start + seconds, takes_refusals), "127.0.0.1", port
        )
        for _ in range(connections)
    ]
    lengths = await asyncio.gather(*(protocol.done for _, protocol in pairs))
    elapsed = time.perf_counter() - start
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    refused = sum(protocol.refused for _, protocol in pairs)
    return Load(len(latencies) / elapsed, float(p50), float(p99), max(lengths), len(latencies), refused)
