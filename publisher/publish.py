"""Sending messages under a load pattern; called by `anomaly publish` and by other Python code.

source = MessageSource(TransactionGenerator(seed=7, cycle=10_000), malformed_share=0.01)
with PubSubTopic("projects/my-project/topics/transactions") as topic:
    summary = publish(source, topic, count=10_000)
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from publisher.files import JsonLinesFile, LabelsFile
from publisher.forms import EVENT_TIME, MALFORMED_KIND, PLANTED_KIND
from publisher.messages import MessageSource, Outgoing, Source
from publisher.patterns import Constant, Pattern
from publisher.sink import Receipt, Sink

BATCH: Final = 1_000
"""Most messages that are made at a time."""
TICK_SECONDS: Final = 0.005
"""Seconds to wait when no message is due."""
FAILED_REQUESTS: Final = 3
"""So many failed requests in a row end the run: each has used up its retries."""

StoppedBy = Literal["count", "duration", "source", "signal", "failures"]


@dataclass(frozen=True)
class Progress:
    """Progress of a run: messages sent, confirmed, failed and left out, and seconds since its start."""

    sent: int
    confirmed: int
    failed: int
    left_out: int
    seconds: float


@dataclass
class Summary:
    """The outcome of a run.

    Attributes:
      destination: topic or file.
      stopped_by: what ended the run: "count" or "duration" as asked for, the end of the "source", "signal",
        or "failures".
      sent: messages handed to the destination; each of them is confirmed, failed or left out.
      confirmed: messages that arrived.
      failed: messages that could not be published.
      left_out: malformed messages that the destination cannot hold.
      normal: confirmed messages with neither fraud nor fault.
      planted: confirmed messages by kind of planted fraud.
      malformed: confirmed messages by kind of malformed message.
      errors: failed messages by reason.
      bytes: size of the confirmed payloads.
      first_event_time, last_event_time: of the confirmed messages, where they are synthetic.
      seconds: from the first message made to the last receipt.
    """

    destination: str
    stopped_by: StoppedBy = "count"
    sent: int = 0
    confirmed: int = 0
    failed: int = 0
    left_out: int = 0
    normal: int = 0
    planted: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    first_event_time: str | None = None
    last_event_time: str | None = None
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Confirmed messages a second."""
        return self.confirmed / self.seconds if self.seconds > 0 else 0.0

    def add(self, receipt: Receipt) -> None:
        """Count what a receipt says."""
        messages = receipt.messages
        self.left_out += receipt.left_out
        if receipt.error is not None:
            self.failed += len(messages)
            self.errors[str(receipt.error)] += len(messages)
            return
        self.confirmed += len(messages)
        self.bytes += sum(map(len, messages.payloads))
        planted, malformed = (_counts(messages.about.column(name)) for name in (PLANTED_KIND, MALFORMED_KIND))
        self.planted += planted
        self.malformed += malformed
        self.normal += len(messages) - planted.total() - malformed.total()
        if len(messages) and EVENT_TIME in messages.about.schema.names:
            times = messages.about.column(EVENT_TIME)
            first, last = (times[row].as_py().isoformat(timespec="milliseconds") for row in (0, -1))
            self.first_event_time = self.first_event_time or first
            self.last_event_time = last

    def to_dict(self) -> dict[str, Any]:
        """The fields and the rate as plain values, for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        counts = {name: dict(value) for name, value in values.items() if isinstance(value, Counter)}
        return values | counts | {"rate": self.rate}


def publish(
    source: Source,
    sink: Sink,
    *,
    pattern: Pattern | None = None,
    count: int | None = None,
    duration: float | None = None,
    tee: Path | None = None,
    labels: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Send messages from `source` to `sink` until the first of the given ends is reached, then flush.

    The end of the source is an end as well.

    A destination that is slower than the pattern is waited for; the run then catches up as fast as it can.

    Args:
      source: makes the messages.
      sink: takes them; the caller opens and closes it.
      pattern: when they are due; None is as fast as possible.
      count: how many to send, malformed ones included; None is no limit.
      duration: for how many seconds to send; None is no limit.
      tee: a file that gets the payload of every confirmed message as a line, in the order of sending.
      labels: a Parquet file that gets a row of LABELS for every confirmed message.
      progress: called after every portion.
      stop: ends the run when it is set, as Ctrl-C does on the command line.
      clock: seconds on a clock that never goes back.

    Returns:
      The summary. Failed messages are counted there and end the run early; they raise nothing.
    """
    pattern = pattern or Constant()
    stop = stop or threading.Event()
    summary = Summary(sink.destination)
    failed_in_a_row = 0
    with contextlib.ExitStack() as stack:
        tee_file = stack.enter_context(JsonLinesFile(tee)) if tee else None
        labels_file = stack.enter_context(LabelsFile(labels)) if labels else None
        started = clock()

        def settle(receipts: Iterable[Receipt]) -> bool:
            """Book receipts. True where the run has to end."""
            nonlocal failed_in_a_row
            fatal = False
            for receipt in receipts:
                summary.add(receipt)
                if receipt.error is not None:
                    failed_in_a_row += 1
                    fatal = fatal or receipt.error.fatal
                else:
                    failed_in_a_row = 0
                    _write(receipt.messages, tee_file, labels_file)
            summary.seconds = clock() - started
            if progress is not None:
                progress(_progress(summary))
            return fatal or failed_in_a_row >= FAILED_REQUESTS

        while True:
            if stop.is_set():
                summary.stopped_by = "signal"
                break
            if count is not None and summary.sent >= count:
                summary.stopped_by = "count"
                break
            elapsed = clock() - started
            if duration is not None and elapsed >= duration:
                summary.stopped_by = "duration"
                break
            limit = math.inf if count is None else count
            due = int(min(pattern.due(max(elapsed, 1e-9)) - summary.sent, limit - summary.sent, BATCH))
            if due < 1:
                stop.wait(TICK_SECONDS)
                receipts = sink.poll()
            else:
                messages = source.take(due)
                if not len(messages):
                    summary.stopped_by = "source"
                    break
                summary.sent += len(messages)
                receipts = sink.send(messages)
            if (receipts or due >= 1) and settle(receipts):
                summary.stopped_by = "failures"
                break
        settle(sink.flush())
    return summary


def write_jsonl(path: Path, source: MessageSource, count: int, labels: Path | None = None) -> Summary:
    """Write `count` messages from `source` to `path`, one a line; an existing file is replaced."""
    with JsonLinesFile(path) as sink:
        return publish(source, sink, count=count, labels=labels)


def _counts(kinds: pa.Array) -> Counter[str]:
    counted = kinds.drop_null().value_counts()
    return Counter(dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)))


def _write(messages: Outgoing, tee: JsonLinesFile | None, labels: LabelsFile | None) -> None:
    if tee is not None:
        tee.write(messages)
    if labels is not None:
        labels.write(messages)


def _progress(summary: Summary) -> Progress:
    return Progress(summary.sent, summary.confirmed, summary.failed, summary.left_out, summary.seconds)
