"""Messages made from transactions: JSON payloads, attributes, and the malformed ones among them."""

from __future__ import annotations

import datetime as dt
import gzip
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from common import file_kinds
from model.synthetic.generator import BLOCK
from model.synthetic.parameters import CYCLE_SECONDS
from publisher import malformed
from publisher.forms import (
    ABOUT_ANY,
    EVENT_TIME,
    MALFORMED_KIND,
    PLANTED_KIND,
    TIME_TYPE,
    Batch,
    Form,
    Generator,
)
from publisher.ulb import ULB

_MALFORMED_STREAM: Final = 4


@dataclass(frozen=True)
class Outgoing:
    """A run of consecutive messages on their way out, in columns of n entries.

    Attributes:
      payloads: JSON in UTF-8, or whatever a malformed message holds.
      attributes: of the Pub/Sub message. One dict can serve several messages: do not change them.
      about: n rows about the messages, of a schema that begins with ABOUT_ANY; Form.about for synthetic ones.
    """

    payloads: list[bytes]
    attributes: list[dict[str, str]]
    about: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.payloads)

    def slice(self, start: int, stop: int) -> Outgoing:
        """The messages from `start` up to `stop`."""
        about = self.about.slice(start, stop - start)
        return Outgoing(self.payloads[start:stop], self.attributes[start:stop], about)

    def take(self, rows: list[int]) -> Outgoing:
        """The messages at some positions."""
        payloads, attributes = [self.payloads[i] for i in rows], [self.attributes[i] for i in rows]
        return Outgoing(payloads, attributes, self.about.take(pa.array(rows, pa.int64())))

    def well_formed(self) -> Outgoing:
        """The synthetic messages without the malformed ones."""
        kinds = self.about.column(MALFORMED_KIND)
        if kinds.null_count == len(self):
            return self
        return self.take(np.flatnonzero(kinds.is_null().to_numpy(zero_copy_only=False)).tolist())


class Source(Protocol):
    """A source of messages."""

    def take(self, n: int) -> Outgoing:
        """The next `n` messages; fewer, and in the end none, where there are no more."""


class FileSource:
    """The lines of a file, each a message; empty lines are passed over.

    Args:
      path: JSON lines, or any other lines; a name that ends in .gz is decompressed.

    Raises:
      ValueError: it holds no lines, but is of another kind, such as CSV or a JSON array.
      OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        # Open until the source is gone, as the messages are taken one portion after another.
        file = path.open("rb")
        lines = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        try:
            problem = file_kinds.problem(lines.read(file_kinds.HEAD_BYTES))
        except gzip.BadGzipFile:
            problem = "is not compressed by gzip, as its name says"
        if problem:
            raise ValueError(f"--input={path}: it {problem}")
        lines.seek(0)
        self._lines = (line for line in map(bytes.rstrip, lines) if line)
        self._taken = 0

    def take(self, n: int) -> Outgoing:
        """The next `n` messages, fewer at the end of the file."""
        payloads = list(itertools.islice(self._lines, n))
        index = np.arange(self._taken, self._taken + len(payloads))
        self._taken += len(payloads)
        about = pa.RecordBatch.from_arrays(
            [pa.array(index), *[pa.nulls(len(payloads), field.type) for field in ABOUT_ANY[1:]]],
            schema=pa.schema(ABOUT_ANY),
        )
        return Outgoing(payloads, [{}] * len(payloads), about)


class MessageSource:
    """An endless stream of messages, one for each transaction of a generator.

    Args:
      generator: makes the transactions.
      malformed_share: share of the messages that are spoiled, from 0 to 1. A spoiled message takes the place
        of the transaction that it was made from; if that was a planted fraud, it no longer counts as one.
      malformed_kinds: names in publisher.malformed.KINDS, all equally likely; None takes all of the form.
      start_time: simulated event time, when the stream starts; a transaction happens `elapsed` later. None
        takes the wall clock at the moment when the message is made, which is when it is sent.
      form: how the transactions of the generator are written.
      ends_at_present: the stream ends where simulated time passes the wall clock, as a pipeline rejects
        messages from the future.

    Raises:
      ValueError: an argument is out of its range, or a kind is unknown.
    """

    def __init__(
        self,
        generator: Generator,
        malformed_share: float = 0.0,
        malformed_kinds: Sequence[str] | None = None,
        start_time: dt.datetime | None = None,
        form: Form = ULB,
        ends_at_present: bool = False,
    ) -> None:
        malformed_kinds = form.malformed if malformed_kinds is None else malformed_kinds
        unknown = sorted(set(malformed_kinds) - set(form.malformed))
        if unknown:
            raise ValueError(
                f"malformed_kinds: no kind {', '.join(unknown)}; there are {', '.join(form.malformed)}"
            )
        if not 0 <= malformed_share <= 1:
            raise ValueError(f"malformed_share: {malformed_share} is not between 0 and 1")
        if malformed_share > 0 and not malformed_kinds:
            raise ValueError("malformed_kinds: name at least one kind, or set malformed_share to 0")
        if start_time is not None and start_time.tzinfo is None:
            raise ValueError(f"start_time: {start_time} has no time zone")
        self.generator = generator
        self.malformed_share = malformed_share
        self.kinds = [malformed.KINDS[name] for name in dict.fromkeys(malformed_kinds)]
        self.start_time = start_time
        self.form = form
        self._ends_at_present = ends_at_present and start_time is not None

    def take(self, n: int) -> Outgoing:
        """The next `n` messages; fewer, and none from then on, where the stream ends at the present."""
        batch: Batch = self.generator.transactions(n)
        moments = self._event_times(batch)
        if self._ends_at_present:
            until = int(np.searchsorted(moments, _now(), side="right"))
            batch, moments = batch.slice(0, until), moments[:until]
        texts = [f"{text}Z" for text in np.datetime_as_string(moments).tolist()]
        payloads = self.form.payloads(batch, texts)
        planted = batch.planted_kinds
        ids: list[str | None] = list(batch.transaction_ids)
        attributes = [{EVENT_TIME: text} for text in texts]
        for i in np.flatnonzero(batch.kind_codes).tolist():
            attributes[i][PLANTED_KIND] = planted[i] or ""
        kinds: list[str | None] = [None] * len(batch)
        for i, rng in self._spoiled(batch):
            kind = self.kinds[int(rng.integers(len(self.kinds)))]
            payloads[i] = kind.make(orjson.loads(payloads[i]), rng)
            attributes[i] = {MALFORMED_KIND: kind.name}
            if kind.has_time:
                attributes[i][EVENT_TIME] = texts[i]
            kinds[i], planted[i] = kind.name, None
            if not kind.has_id:
                ids[i] = None
        about = pa.RecordBatch.from_arrays(
            [
                pa.array(batch.index),
                pa.array(ids, pa.string()),
                pa.array(planted, pa.string()),
                pa.array(kinds, pa.string()),
                pa.array(batch.account_ids, pa.string()),
                pa.array(moments.astype("datetime64[us]")).cast(TIME_TYPE),
                *self.form.arrays(batch),
            ],
            schema=self.form.about,
        )
        return Outgoing(payloads, attributes, about)

    def _event_times(self, batch: Batch) -> npt.NDArray[np.datetime64]:
        """The event times in UTC, to the millisecond."""
        if self.start_time is None:
            return np.full(len(batch), _now())
        start = _milliseconds(self.start_time)
        return start + np.floor(batch.elapsed * 1e3).astype("timedelta64[ms]")

    def _spoiled(self, batch: Batch) -> list[tuple[int, np.random.Generator]]:
        """Positions in `batch` of the messages to spoil, each with its source of chance.

        A function of seed and index, so that it does not matter in which portions the stream is taken.
        """
        if self.malformed_share == 0 or not len(batch):
            return []
        seed = self.generator.seed
        first, last = int(batch.index[0]), int(batch.index[-1])
        out = []
        for block in range(first // BLOCK, last // BLOCK + 1):
            rng = np.random.default_rng([seed, _MALFORMED_STREAM, block])
            chosen = np.flatnonzero(rng.random(BLOCK) < self.malformed_share) + block * BLOCK
            for index in chosen[(chosen >= first) & (chosen <= last)].tolist():
                out.append((index - first, np.random.default_rng([seed, _MALFORMED_STREAM, block, index])))
        return out


def _now() -> np.datetime64:
    return _milliseconds(dt.datetime.now(dt.UTC))


def _milliseconds(moment: dt.datetime) -> np.datetime64:
    return np.datetime64(moment.astimezone(dt.UTC).replace(tzinfo=None), "ms")


def default_start_time(now: dt.datetime | None = None) -> dt.datetime:
    """Midnight UTC two days ago: one cycle of simulated time ends with today's midnight, none of it ahead."""
    moment = (now or dt.datetime.now(dt.UTC)).astimezone(dt.UTC)
    today = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return today - dt.timedelta(seconds=CYCLE_SECONDS)
