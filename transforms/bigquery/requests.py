"""The requests of an Appender: those to be sent, on their way, or kept for another try. No Beam here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from transforms.bigquery.rows import serialized_size
from transforms.bigquery.sending import Sending


@dataclass(eq=False, slots=True)
class Request:
    """Rows for one request, and the caller whose they are.

    Attributes:
      batch: the rows.
      sending: of the caller.
      bytes: size of the rows.
      sent: time of the Appender's clock when it was sent.
    """

    batch: pa.RecordBatch
    sending: Sending
    bytes: int
    sent: float = 0.0


class RequestQueue:
    """Requests of all callers, in the order in which the service gets them.

    Attributes:
      todo: those to be sent.
      flight: those sent and not answered.
      again: those refused for a while, older than `flight`.
      bytes: size of all of them.
    """

    def __init__(self) -> None:
        self.todo: deque[Request] = deque()
        self.flight: deque[Request] = deque()
        self.again: deque[Request] = deque()
        self.bytes = 0

    @property
    def callers(self) -> set[Sending]:
        """Those who have rows here."""
        return {request.sending for request in (*self.again, *self.flight, *self.todo)}

    def add(self, sending: Sending, batches: Iterable[pa.RecordBatch]) -> None:
        """Adds requests of a caller behind the others."""
        requests = [Request(batch, sending, serialized_size(batch)) for batch in batches]
        sending.open += len(requests)
        self.bytes += sum(request.bytes for request in requests)
        self.todo.extend(requests)

    def settle(self, request: Request, parts: Iterable[pa.RecordBatch] = ()) -> None:
        """Forgets a request that was taken out of `flight`; `parts` are sent next in its place."""
        self.bytes -= request.bytes
        sending = request.sending
        if sending.error is None:
            new = [Request(part, sending, serialized_size(part)) for part in parts if part.num_rows]
            sending.open += len(new) - 1
            self.bytes += sum(each.bytes for each in new)
            self.todo.extendleft(reversed(new))

    def requeue(self) -> None:
        """Puts what has no answer back, in front of what was not sent."""
        unanswered = [*self.again, *self.flight]
        self.again.clear()
        self.flight.clear()
        self.bytes -= sum(request.bytes for request in unanswered if request.sending.error is not None)
        self.todo.extendleft(request for request in reversed(unanswered) if request.sending.error is None)

    def fail(self, sending: Sending, error: Exception) -> None:
        """Drops the requests of a caller. Those on their way stay, for the sake of their answers."""
        sending.error = error
        for requests in (self.todo, self.again):
            kept = [request for request in requests if request.sending is not sending]
            self.bytes -= sum(request.bytes for request in requests if request.sending is sending)
            requests.clear()
            requests.extend(kept)
