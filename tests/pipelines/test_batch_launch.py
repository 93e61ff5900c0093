"""What the batch pipeline understands and refuses at launch, on real files and tables."""

from __future__ import annotations

import datetime as dt
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery

from model.features import FEATURES
from pipelines import batch
from transforms import metrics
from transforms.bigquery.source import create_streams
from transforms.schema import to_bigquery


def ulb(rows: int = 5, **columns: object) -> pa.Table:
    """Transactions in the ULB layout; `columns` replace or add, and None takes away."""
    found = {name: np.arange(rows) + i / 100 for i, name in enumerate(FEATURES)} | columns
    return pa.table({name: values for name, values in found.items() if values is not None})


def run_batch(argv: list[str]) -> dict[str, int]:
    """The counters of a job."""
    result = batch.run(argv)
    result.wait_until_finish()
    return metrics.totals(result)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.jsonl", "jsonl"),
        ("gs://b/2026-*.json", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.jsonl.gz", "jsonl"),
        ("a.ndjson.bz2", "jsonl"),
        ("a.JSON.GZ", "jsonl"),
        ("a-*.jsonl.zst", "jsonl"),
        ("a.jsonl.xz", "jsonl"),
        ("a.gz", None),
        ("a.csv.gz", None),
        ("a.csv", None),
    ],
)
def test_the_ending_tells_the_format_behind_that_of_the_compression(path, found):
    args, _ = batch.parser().parse([f"--input={path}", "--model=m", "--output=o"])
    assert batch.input_format(args) == found


def test_a_column_that_is_no_part_of_a_transaction_is_not_read_from_parquet(model_dir, tmp_path):
    path = tmp_path / "wide.parquet"
    pq.write_table(ulb(notes=["a note"] * 5, Class=[0] * 5), path, compression="none", use_dictionary=False)
    columns = pq.read_metadata(path).row_group(0)
    (notes,) = [
        columns.column(i) for i in range(columns.num_columns) if columns.column(i).path_in_schema == "notes"
    ]
    with path.open("r+b") as file:  # a reader that looks at the column fails
        file.seek(notes.data_page_offset)
        file.write(b"\xff" * notes.total_compressed_size)
    with pytest.raises(OSError, match=r"."):
        pq.read_table(path)
    totals = run_batch([f"--input={path}", f"--model={model_dir}", f"--output={tmp_path / 'scored'}"])
    assert totals[metrics.ROWS_SCORED] == 5


@pytest.fixture
def make_table(bigquery_emulator, bigquery_client, dataset):
    """Makes a table of an Arrow table, and gives its name."""

    def make(rows: pa.Table) -> str:
        full = f"{bigquery_client.project}.{dataset}.transactions"
        bigquery_client.create_table(bigquery.Table(full, to_bigquery(rows.schema)))
        pq.write_table(rows, file := io.BytesIO())
        config = bigquery.LoadJobConfig(source_format="PARQUET")
        bigquery_client.load_table_from_file(file, full, rewind=True, job_config=config).result()
        return full

    return make


@pytest.fixture
def bigquery_flags(bigquery_emulator) -> list[str]:
    return [
        f"--bigquery_endpoint={bigquery_emulator.bigquery}",
        f"--bigquery_storage_endpoint={bigquery_emulator.bigquery_storage}",
    ]


@pytest.mark.integration
@pytest.mark.parametrize("source", ["--input_table={}", "--input_query=SELECT * FROM `{}`"])
def test_a_column_that_is_no_part_of_a_transaction_is_not_read_from_bigquery(
    make_table, bigquery_flags, bigquery_client, source
):
    table = make_table(ulb(account_id=["a"] * 5, notes=["a note"] * 5, Class=[0] * 5))
    argv = [source.format(table), "--model=m", "--output=o", *bigquery_flags]
    args, _ = batch.parser().parse(argv)
    read, _ = batch._source(args, dt.datetime.now(dt.UTC))
    read.project, read.max_streams = bigquery_client.project, 1
    (stream,) = create_streams(read)
    names = pa.ipc.read_schema(pa.py_buffer(stream.schema)).names
    assert sorted(names) == sorted(["account_id", *FEATURES])
