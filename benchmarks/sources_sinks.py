"""Rows per second of this project's sources and sinks, beside Beam's own and the BigQuery client's helper.

Example:
  python -m benchmarks.sources_sinks --runs 3 --batches 50

Pipelines run on FnApiRunner, so that a part of each figure is the runner's fixed cost of some tenths of a
second. BigQuery is the local emulator: its figures compare ways to write to one and the same server, and say
nothing of the speed of Google's. Streaming inserts get a hundredth of the rows, because they are that slow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
from google.cloud.bigquery_storage_v1 import types
from google.cloud.bigquery_storage_v1.writer import AppendRowsStream

from benchmarks import sources_sinks_data as data
from benchmarks.beam_connectors import beam_connectors
from common.clients import BigQueryEndpoints
from common.command import command
from common.output import track
from local.endpoints import Endpoints
from local.stack import LocalStack
from transforms.bigquery import ReadBatches, WriteBatches
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.streams import default_stream
from transforms.files import ReadJsonLines, ReadParquetBatches
from transforms.parquet_sink import WriteParquetBatches
from transforms.schema import SCORES
from transforms.tables import create_tables, scores_table

SMALL_ROWS = 100


@dataclass(frozen=True)
class Case:
    """One measurement: `run` handles `rows` rows. `versus` names the case that its ratio is taken to."""

    group: str
    name: str
    rows: int
    run: Callable[[], object]
    versus: str | None = None


def pipeline(build: Callable[[beam.Pipeline], object], project: str | None = None) -> None:
    """Builds and runs a pipeline to its end."""
    argv = [f"--project={project}", "--temp_location=gs://local/tmp"] if project else []
    with beam.Pipeline(runner="FnApiRunner", argv=argv) as p:
        build(p)


def generated(p: beam.Pipeline, batches: int) -> beam.PCollection:
    """Batches of scores as a PCollection."""
    return p | beam.Create([batches]) | beam.ParDo(data.Generate()).with_output_types(pa.RecordBatch)


def file_cases(directory: Path, batches: int) -> list[Case]:
    """Lines in, Parquet in, Parquet out."""
    rows = batches * data.BATCH_ROWS
    lines, parquet, out = directory / "rows.jsonl", directory / "in", directory / "out"
    data.write_lines(lines, rows)

    def write(place: Path) -> None:
        own = WriteParquetBatches(str(place), {"rows": SCORES}, overwrite=True)
        pipeline(lambda p: {"rows": generated(p, batches)} | own)

    write(parquet)

    def read(source: beam.PTransform) -> None:
        pipeline(lambda p: p | source | beam.ParDo(data.Drop()))

    def beams_sink(p: beam.Pipeline) -> None:
        tables = generated(p, batches) | beam.Map(data.to_table)
        _ = tables | beam.io.WriteToParquetBatched(f"{out}/beam", SCORES, codec="snappy")

    text = "beam.io.ReadFromText, bytes"
    beams_parquet = "beam.io.ReadFromParquetBatched"
    return [
        Case("lines in", "ReadJsonLines", rows, lambda: read(ReadJsonLines(str(lines))), text),
        Case(
            "lines in",
            text,
            rows,
            lambda: read(beam.io.ReadFromText(str(lines), coder=beam.coders.BytesCoder())),
        ),
        Case(
            "parquet in",
            "ReadParquetBatches",
            rows,
            lambda: read(ReadParquetBatches(f"{parquet}/*")),
            beams_parquet,
        ),
        Case(
            "parquet in",
            beams_parquet,
            rows,
            lambda: read(beam.io.ReadFromParquetBatched(f"{parquet}/*")),
        ),
        Case(
            "parquet out",
            "WriteParquetBatches",
            rows,
            lambda: write(out / "own"),
            "beam.io.WriteToParquetBatched",
        ),
        Case("parquet out", "beam.io.WriteToParquetBatched", rows, lambda: pipeline(beams_sink)),
    ]


def bigquery_cases(local: Endpoints, batches: int) -> list[Case]:
    """Sinks and the source, each run with a table of its own."""
    endpoints = BigQueryEndpoints(local.bigquery, local.bigquery_storage)
    client = endpoints.client(local.project)
    rows = batches * data.BATCH_ROWS

    def new_table() -> str:
        dataset = f"{local.project}.bench_{uuid.uuid4().hex[:8]}"
        create_tables(client, dataset, [scores_table()])
        return f"{dataset}.scores"

    def write(count: int, **settings: object) -> None:
        table = new_table()
        sink = WriteBatches(table, SCORES, endpoints=endpoints, **settings)  # type: ignore[arg-type]
        pipeline(lambda p: generated(p, count) | sink, local.project)

    small = [batch.slice(0, SMALL_ROWS) for batch in data.scores(min(batches, 50))]
    filled = new_table()
    pipeline(
        lambda p: generated(p, batches) | WriteBatches(filled, SCORES, streaming=True, endpoints=endpoints)
    )

    def appender() -> None:
        own = Appender(WriteChannel(endpoints.write_client), default_stream(new_table()), SCORES)
        for batch in small:
            own.append([batch])
        own.close()

    def read() -> None:
        pipeline(lambda p: p | ReadBatches(filled, endpoints=endpoints) | beam.ParDo(data.Drop()))

    return [
        Case("bigquery out", "storage_arrow, streaming", rows, lambda: write(batches, streaming=True)),
        Case("bigquery out", "storage_arrow, batch", rows, lambda: write(batches)),
        Case(
            f"appends of {SMALL_ROWS} rows",
            "Appender",
            len(small) * SMALL_ROWS,
            appender,
            "the client's AppendRowsStream",
        ),
        Case(
            f"appends of {SMALL_ROWS} rows",
            "the client's AppendRowsStream",
            len(small) * SMALL_ROWS,
            lambda: append_with_helper(endpoints, new_table(), small),
        ),
        Case("bigquery in", "ReadBatches", rows, read),
    ]


def append_with_helper(endpoints: BigQueryEndpoints, table: str, batches: Sequence[pa.RecordBatch]) -> None:
    """The same appends, one after the other, with the helper of google-cloud-bigquery-storage."""
    template = types.AppendRowsRequest(write_stream=default_stream(table))
    template.arrow_rows = types.AppendRowsRequest.ArrowData(
        writer_schema=types.ArrowSchema(serialized_schema=SCORES.serialize().to_pybytes())
    )
    stream = AppendRowsStream(endpoints.write_client(), template)
    for batch in batches:
        # The stream's name again: the emulator wants it in every request.
        request = types.AppendRowsRequest(write_stream=default_stream(table))
        request.arrow_rows = types.AppendRowsRequest.ArrowData(
            rows=types.ArrowRecordBatch(serialized_record_batch=batch.serialize().to_pybytes())
        )
        stream.send(request).result()
    stream.close()


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sources_sinks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=3, help="runs of each case (default: %(default)s)")
    parser.add_argument(
        "--batches", type=int, default=50, help=f"of {data.BATCH_ROWS} rows each (default: %(default)s)"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(argv)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    pa.set_cpu_count(1)
    data.scores(options.batches)
    directory = Path(tempfile.mkdtemp(prefix="benchmark-"))
    rates: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        cases = file_cases(directory, options.batches)
        if not LocalStack(pubsub="none").missing():
            local = stack.enter_context(LocalStack(pubsub="none")).endpoints
            stack.enter_context(beam_connectors(local, directory))
            cases += bigquery_cases(local, options.batches)
        for case in track(cases, "cases"):
            rates[case.name] = case.rows / statistics.median(timed(case.run) for _ in range(options.runs))
    if options.format == "json":
        print(json.dumps({"runs": options.runs, "rows_per_second": rates}, indent=2))
        return 0
    print(f"rows per second, median of {options.runs} runs")
    for case in cases:
        ratio = f"{rates[case.name] / rates[case.versus]:8.1f} times" if case.versus else ""
        print(f"  {case.group:22} {case.name:32}{rates[case.name]:12,.0f}{ratio}")
    return 0


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
