"""Record batches to a BigQuery table."""

from __future__ import annotations

import itertools
import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

import transforms.coder  # noqa: F401  registers the coder of record batches
from common.bigquery import table_path
from common.clients import BigQueryEndpoints
from transforms.bigquery import counters, shared
from transforms.bigquery.answers import AppendOptions
from transforms.bigquery.append import Appender
from transforms.bigquery.beam_methods import WriteRows
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.methods import METHODS, NEEDS, Method
from transforms.bigquery.rows import refused_rows
from transforms.bigquery.sending import Sending
from transforms.bigquery.streams import Finished, PendingStream, commit_streams
from transforms.parse import DEAD_LETTER_TAG

_STREAMS: Final = "streams"


class Written(NamedTuple):
    """Output of a sink.

    Attributes:
      dead_letters: PCollection of ERROR_RECORDS record batches, the rows that BigQuery refused.
      streams: PCollection of (name, rows), the pending streams to `Commit`, where WriteBatches does not
        commit; otherwise None.
    """

    dead_letters: beam.PCollection
    streams: beam.PCollection | None = None


@dataclass
class WriteBatches(beam.PTransform):
    """Writes record batches to a BigQuery table.

    Input: PCollection of pyarrow.RecordBatch with at least the columns of `schema`; bounded or not, any
    windows. Output: `Written`, whose dead letters (in the global window) are the rows that BigQuery refused,
    each with its message. Every row is either in the table or a dead letter.

    Methods:
      storage_arrow: Arrow rows to the Storage Write API. With `streaming` to the default stream, where rows
        are visible at once and a retried bundle may store a row twice (the views over the tables
        deduplicate). Otherwise to one pending stream a bundle, and a single commit when all bundles are done:
        the rows of the job appear all together, once, or not at all.
      file_loads, storage_write_api: Beam's own connector; see transforms.bigquery.methods for its needs.

    BigQuery refuses rows whose partition column lies more than 10 years back or 1 year ahead. With
    `streaming`, the threads of a process share one connection a table (`transforms.bigquery.shared`);
    otherwise each bundle in progress has one. Connections count against a quota of the project.

    The sinks of one bundle send their rows together, and only then wait: see `_AppendFn.finish_bundle`.

    Counters of storage_arrow: see transforms.bigquery.counters.

    Attributes:
      table: "PROJECT.DATASET.TABLE"; it must exist, see transforms.tables.
      schema: the Arrow schema of the table.
      method: see above.
      streaming: whether the pipeline is; see storage_arrow.
      endpoints: where BigQuery answers.
      options: limits and patience of the appends.
      launched: when the job was, in seconds since the epoch. A batch job must commit within a day, so a
        bundle that begins after 23 hours is refused.
      commit: False leaves the commit of a batch job to the caller, who can let several tables wait for each
        other: `[a.streams, b.streams] | beam.Flatten() | Commit(endpoints)`.
    """

    table: str
    schema: pa.Schema
    method: Method = "storage_arrow"
    streaming: bool = False
    endpoints: BigQueryEndpoints = field(default_factory=BigQueryEndpoints)
    options: AppendOptions = field(default_factory=AppendOptions)
    launched: float = field(default_factory=time.time)
    commit: bool = True

    def __post_init__(self) -> None:
        super().__init__(f"Write {self.table}")
        table_path(self.table)
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")

    def expand(self, batches: beam.PCollection) -> Written:
        """Builds the pipeline of the method."""
        # A sink sees no windows; rows of several of them may share a request.
        batches = batches | "Any window" >> beam.WindowInto(GlobalWindows())
        if NEEDS[self.method].is_beams:
            return Written(batches | WriteRows(self.table, self.schema, self.method, self.streaming))
        if self.streaming:
            append_now = beam.ParDo(AppendToDefaultStream(self)).with_output_types(pa.RecordBatch)
            return Written(batches | "Append" >> append_now)
        append = beam.ParDo(AppendToPendingStream(self)).with_output_types(
            pa.RecordBatch, **{_STREAMS: tuple[str, int]}
        )
        appended = batches | "Append" >> append.with_outputs(_STREAMS, main=DEAD_LETTER_TAG)
        if self.commit:
            _ = appended[_STREAMS] | Commit(self.endpoints)
            return Written(appended[DEAD_LETTER_TAG])
        return Written(appended[DEAD_LETTER_TAG], appended[_STREAMS])


@dataclass
class Commit(beam.PTransform):
    """Commits pending streams once all of them are there.

    Input: PCollection of (name, rows), streams of one table or of several. No input, no commit.
    Output: PCollection of int, the number of streams committed; one element.

    Attributes:
      endpoints: where BigQuery answers.
      order: tables in the order of their commits; others follow by name.
    """

    endpoints: BigQueryEndpoints = field(default_factory=BigQueryEndpoints)
    order: Sequence[str] = ()

    def expand(self, streams: beam.PCollection) -> beam.PCollection:
        """The side input is the barrier: it is complete when no bundle is left to write."""
        once = streams.pipeline | "Once" >> beam.Create([None], reshuffle=False)
        return once | "Commit" >> beam.ParDo(
            _CommitFn(self.endpoints, self.order), beam.pvalue.AsList(streams)
        )


class _BundleOfThread(threading.local):
    """The DoFns that hold rows of the bundle that this thread processes."""

    def __init__(self) -> None:
        self.holders: list[_AppendFn] = []


_BUNDLE: Final = _BundleOfThread()


class _AppendFn(beam.DoFn):
    """Gathers the batches of a bundle into requests of a good size. Record batches in, dead letters out."""

    def __init__(self, sink: WriteBatches) -> None:
        self._table = sink.table
        self._schema = sink.schema
        self._endpoints = sink.endpoints
        self._options = sink.options
        self._launched = sink.launched
        self._counters = counters.SinkCounters(sink.table.rpartition(".")[2])
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0
        self._sending: Sending | None = None

    @abstractmethod
    def appender(self) -> Appender:
        """Returns the appender of this bundle."""

    def start_bundle(self) -> None:
        """Drops the rows of a failed bundle, of this DoFn and of others in this thread."""
        _BUNDLE.holders.clear()
        self._held, self._bytes = [], 0
        if self._sending is not None:
            self.appender().abandon(self._sending)
            self._sending = None

    def process(self, batch: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        """Gathers the rows, and sends them once they fill a request."""
        if not self._held:
            _BUNDLE.holders.append(self)
        self._held.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= self._options.max_request_bytes:
            self.send()
            yield from self._letters()

    def finish_bundle(self) -> Iterable[Any]:
        """Sends what all sinks of this bundle hold, and waits for the answers to the rows of this one.

        So a bundle waits as long as for the slowest table, not for one after the other.
        """
        for holder in _BUNDLE.holders:
            holder.send()
        _BUNDLE.holders.clear()
        if self._sending is not None:
            self.appender().finish(self._sending)
            for letters in self._letters():
                yield GlobalWindows.windowed_value(letters)
            self._sending = None

    def send(self) -> None:
        """Sends the rows that are held."""
        if not self._held:
            return
        appender = self.appender()
        if self._sending is None:
            self._sending = appender.begin(self._counters.count)
        held, self._held, self._bytes = self._held, [], 0
        appender.submit(self._sending, held)

    def _letters(self) -> Iterator[pa.RecordBatch]:
        if self._sending is not None:
            for refused in self._sending.result.take_refused():
                yield refused_rows(refused, self._table)


class AppendToDefaultStream(_AppendFn):
    """Stores the rows of a bundle before the bundle counts as done. The connection outlives the bundles."""

    def setup(self) -> None:
        """Finds the appender of the process; its connection follows with the first rows."""
        self._target = shared.Target(self._table, self._schema, self._endpoints, self._options)
        self._appender = shared.acquire(self._target)

    def appender(self) -> Appender:
        """Returns the appender of the process."""
        return self._appender

    def teardown(self) -> None:
        """Gives the appender back."""
        shared.release(self._target)


class AppendToPendingStream(_AppendFn):
    """Stores the rows of a bundle on a stream of their own, which is a further output.

    A bundle that fails leaves a stream that nobody commits.
    """

    def setup(self) -> None:
        """Prepares the channel, which opens with the first rows."""
        self._channel = WriteChannel(self._endpoints.write_client)
        self._stream = self._new_stream()

    def start_bundle(self) -> None:
        """A new stream, made with the first rows."""
        super().start_bundle()
        self._stream.close()  # of a bundle that failed
        self._stream = self._new_stream()

    def appender(self) -> Appender:
        """Returns the appender of the bundle's stream."""
        return self._stream.appender()

    def finish_bundle(self) -> Iterable[Any]:
        """Sends the rest."""
        yield from super().finish_bundle()
        finished = self._stream.finish()
        if finished is not None:
            yield beam.pvalue.TaggedOutput(_STREAMS, GlobalWindows.windowed_value(tuple(finished)))

    def teardown(self) -> None:
        """Closes stream and channel."""
        self._stream.close()
        self._channel.close()

    def _new_stream(self) -> PendingStream:
        return PendingStream(self._channel, self._table, self._schema, self._options, self._launched)


class _CommitFn(beam.DoFn):
    """Commits all streams of a job at once. Safe to run again."""

    def __init__(self, endpoints: BigQueryEndpoints, order: Sequence[str]) -> None:
        self._endpoints = endpoints
        self._order = order

    def process(self, _: None, streams: Sequence[tuple[str, int]]) -> Iterable[int]:
        client = self._endpoints.write_client()
        try:
            yield commit_streams(client, itertools.starmap(Finished, streams), self._order)
        finally:
            client.transport.close()
