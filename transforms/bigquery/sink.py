"""Record batches to a BigQuery table."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

import transforms.coder  # noqa: F401  registers the coder of record batches
from common.bigquery import table_path
from transforms.bigquery.append import Appender, AppendOptions
from transforms.bigquery.beam_methods import WriteRows
from transforms.bigquery.methods import METHODS, NEEDS, Method
from transforms.bigquery.rows import refused_rows
from transforms.bigquery.streams import Finished, PendingStream, commit_streams, default_stream
from transforms.clients import BigQueryEndpoints
from transforms.metrics import counter
from transforms.parse import DEAD_LETTER_TAG

ROWS_WRITTEN: Final = "rows_written"
ROWS_REFUSED: Final = "rows_refused"
APPEND_CALLS: Final = "append_calls"
APPEND_RETRIES: Final = "append_retries"

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

    BigQuery refuses rows whose partition column lies more than 10 years back or 1 year ahead. Each worker
    thread keeps one connection a table open, which counts against the project's quota of connections.

    Counters, in the project's namespace, per table: `TABLE.rows_written`, `TABLE.rows_refused`,
    `TABLE.append_calls`, `TABLE.append_retries` (the latter two for storage_arrow).

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


class _AppendFn(beam.DoFn):
    """Gathers the batches of a bundle into requests of a good size. Record batches in, dead letters out."""

    _target: Appender | PendingStream | None = None

    def __init__(self, sink: WriteBatches) -> None:
        self._table = sink.table
        self._schema = sink.schema
        self._endpoints = sink.endpoints
        self._options = sink.options
        self._launched = sink.launched
        name = sink.table.rpartition(".")[2]
        self._written = counter(f"{name}.{ROWS_WRITTEN}")
        self._refused = counter(f"{name}.{ROWS_REFUSED}")
        self._calls = counter(f"{name}.{APPEND_CALLS}")
        self._retries = counter(f"{name}.{APPEND_RETRIES}")
        self._held: list[pa.RecordBatch] = []
        self._bytes = 0

    def setup(self) -> None:
        """Opens the client."""
        self._client = self._endpoints.write_client()

    def start_bundle(self) -> None:
        """Drops the rows of a failed bundle."""
        self._held, self._bytes = [], 0

    def process(self, batch: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        """Gathers the rows, and sends them once they fill the requests that may be on their way."""
        self._held.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= self._options.max_request_bytes * self._options.window:
            yield from self._flush()

    def finish_bundle(self) -> Iterable[Any]:
        """Sends the rest."""
        for letters in self._flush():
            yield GlobalWindows.windowed_value(letters)

    def teardown(self) -> None:
        """Closes connection and client."""
        self._close()
        self._client.transport.close()

    def _close(self) -> None:
        if self._target is not None:
            self._target.close()

    def _flush(self) -> Iterator[pa.RecordBatch]:
        if not self._held:
            return
        assert self._target is not None
        result = self._target.append(self._held)
        self._held, self._bytes = [], 0
        self._written.inc(result.rows)
        self._refused.inc(sum(len(refused.reasons) for refused in result.refused))
        self._calls.inc(result.calls)
        self._retries.inc(result.retries)
        for refused in result.refused:
            yield refused_rows(refused, self._table)


class AppendToDefaultStream(_AppendFn):
    """Stores the rows of a bundle before the bundle counts as done. The connection outlives the bundles."""

    def setup(self) -> None:
        """Opens the client; the connection follows with the first rows."""
        super().setup()
        self._target = Appender(self._client, default_stream(self._table), self._schema, self._options)


class AppendToPendingStream(_AppendFn):
    """Stores the rows of a bundle on a stream of their own, which is a further output.

    A bundle that fails leaves a stream that nobody commits.
    """

    def start_bundle(self) -> None:
        """A new stream, made with the first rows."""
        super().start_bundle()
        self._close()  # of a bundle that failed
        self._target = PendingStream(self._client, self._table, self._schema, self._options, self._launched)

    def finish_bundle(self) -> Iterable[Any]:
        """Sends the rest."""
        yield from super().finish_bundle()
        assert isinstance(self._target, PendingStream)
        finished = self._target.finish()
        if finished is not None:
            yield beam.pvalue.TaggedOutput(_STREAMS, GlobalWindows.windowed_value(tuple(finished)))


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
