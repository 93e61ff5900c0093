"""HTTP/1.1 of a server in the open: quick, with limits on the time and the headers of a client.

httptools parses; it costs a third of the CPU of h11. It cannot read a request that offers another protocol,
as Java's HttpClient does on a new connection, so that connection is handed over to h11.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import httptools
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES: Final = 65_536
ARRIVAL: Final = "arrival"
"""The key of the connection in the `state` of an ASGI scope."""


class _JoinedWrites:
    """The transport of a connection, which sends the head of an answer and its body at once.

    uvicorn writes one after the other, and uvloop makes a call of the kernel of each write.
    """

    def __init__(self, transport: asyncio.Transport, protocol: HttpToolsProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keeps the head of an answer until its body comes; sends everything else."""
        cycle = self._protocol.cycle
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines([head, data])
        elif cycle and cycle.response_started and not cycle.response_complete and data.startswith(b"HTTP/"):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Sends a head without a body, as that of an answer to HEAD."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Closes the transport after what is kept is sent."""
        self.flush()
        self._transport.close()


class _Patience:
    """Cuts clients that send or read too slowly, and leaves idle connections alone."""

    config: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any
    app_state: dict[str, Any]
    received_at = 0.0
    """`time.monotonic()` of the latest bytes."""
    _watch: asyncio.TimerHandle | None = None
    _stuck_at: tuple[object, ...] | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)  # type: ignore[misc]
        self.app_state = {**self.app_state, ARRIVAL: self}
        self._watch = self.loop.call_later(self.config.client_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._rest()
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.received_at = time.monotonic()
        super().data_received(data)  # type: ignore[misc]

    def _rest(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _look(self) -> None:
        at = self._waiting_for_client()
        if at is not None and at == self._stuck_at:
            self.transport.abort()
            return
        self._stuck_at = at
        self._watch = self.loop.call_later(self.config.client_seconds, self._look)

    def _waiting_for_client(self) -> tuple[object, ...] | None:
        """Says which request or answer the client has to go on with; None where it has none to."""
        is_whole = self.cycle is None or not self.cycle.more_body
        has_part = self._has_part_of_headers() or not is_whole
        is_unread = self.transport.get_write_buffer_size() > 0
        return (id(self.cycle), has_part, is_unread) if has_part or is_unread else None

    def _has_part_of_headers(self) -> bool:
        raise NotImplementedError


class PatientH11Protocol(_Patience, H11Protocol):
    """HTTP/1.1 by h11, for connections whose first request offers another protocol."""

    def _has_part_of_headers(self) -> bool:
        return bool(self.conn.trailing_data[0])


class PatientProtocol(_Patience, HttpToolsProtocol):
    """HTTP/1.1 by httptools."""

    _in_headers = False
    _header_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._raw_transport = transport
        self.transport: Any = _JoinedWrites(transport, self)

    def on_response_complete(self) -> None:
        """Ends an answer."""
        self.transport.flush()
        super().on_response_complete()

    def on_message_begin(self) -> None:
        """Begins a request; httptools calls this with its first byte."""
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0

    def on_headers_complete(self) -> None:
        """Begins to answer, except where another parser has to read the request anew."""
        self._in_headers = False
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        if not self.parser.should_upgrade():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends a request."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.received_at = time.monotonic()
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._hand_over(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse("Invalid HTTP request received.")
            return
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(f"The headers are longer than {MAX_HEADER_BYTES} bytes.")

    def _refuse(self, reason: str) -> None:
        self.logger.warning(reason)
        self.send_400_response(reason)

    def _hand_over(self, rest: bytes) -> None:
        """Gives the connection to h11, with the request that httptools has read up to its body."""
        self._rest()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # h11 would answer before the request that was sent earlier is answered
            return
        self.connections.discard(self)
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            head += [name, b": ", value, b"\r\n"]
        protocol = PatientH11Protocol(self.config, self.server_state, self.app_state, self.loop)
        protocol.connection_made(self._raw_transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"".join([*head, b"\r\n", rest]))

    def _has_part_of_headers(self) -> bool:
        return self._in_headers
