"""Tests of the Parquet files of a job, and of their publication by the pipeline."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import apache_beam as beam
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to

from common.writing import FileWriteError
from transforms.parquet_sink import WriteParquetBatches
from transforms.publication import SUCCESS, TEMPORARY
from transforms.schema import ALERTS

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("name", pa.string())])
OTHER = pa.schema([pa.field("text", pa.string())])


def batch(start: int, stop: int) -> pa.RecordBatch:
    rows = [{"n": i, "name": None if i % 3 == 0 else f"name {i}"} for i in range(start, stop)]
    return pa.RecordBatch.from_pylist(rows, SCHEMA)


def pipeline(*flags: str) -> beam.Pipeline:
    return beam.Pipeline(runner="FnApiRunner", argv=list(flags))


def written(directory: Path) -> list[dict[str, Any]]:
    """The rows of all files of the set."""
    rows = [row for path in sorted(directory.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: row["n"])


def one_set(directory: Path) -> WriteParquetBatches:
    return WriteParquetBatches(str(directory), {"rows": SCHEMA})


def test_rows_and_schema_survive(tmp_path):
    with pipeline() as p:
        paths = {"rows": p | beam.Create([batch(0, 3), batch(3, 5)])} | one_set(tmp_path / "o")
        assert_that(paths, equal_to([f"{tmp_path}/o/rows-00000-of-00001.parquet"]))
    assert written(tmp_path / "o") == [*batch(0, 5).to_pylist()]
    assert pq.read_schema(tmp_path / "o/rows-00000-of-00001.parquet") == SCHEMA
    assert not (tmp_path / "o" / TEMPORARY).exists()


def test_small_batches_share_a_row_group(tmp_path):
    with pipeline() as p:
        batches = [batch(i, i + 1) for i in range(50)]
        _ = {"rows": p | beam.Create(batches, reshuffle=False)} | one_set(tmp_path)
    (path,) = tmp_path.glob("*.parquet")
    assert pq.read_metadata(path).num_row_groups == 1


def test_each_bundle_gives_a_file_of_its_rows_alone(tmp_path):
    with pipeline("--direct_running_mode=multi_threading", "--direct_num_workers=3") as p:
        bundles = p | beam.Create([batch(i, i + 2) for i in range(0, 40, 2)]) | beam.Reshuffle()
        _ = {"rows": bundles} | one_set(tmp_path)
    files = sorted(tmp_path.glob("*.parquet"))
    assert [path.name for path in files] == [
        f"rows-{number:05d}-of-{len(files):05d}.parquet" for number in range(len(files))
    ]
    assert len(files) > 1
    assert written(tmp_path) == batch(0, 40).to_pylist()


def test_the_files_of_a_bundle_that_runs_again_are_there_once(tmp_path):
    with pipeline("--direct_runner_bundle_repeat=2") as p:
        _ = {"rows": p | beam.Create([batch(0, 3), batch(3, 5)])} | one_set(tmp_path)
    assert written(tmp_path) == batch(0, 5).to_pylist()
    assert not (tmp_path / TEMPORARY).exists()


def test_nested_columns_survive(tmp_path):
    row = {
        "transaction_id": "a",
        "account_id": None,
        "event_time": dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
        "event_time_derived": True,
        "amount": 12.5,
        "anomaly_score": 3.5,
        "severity": "high",
        "threshold": 3.0,
        "top_features": [
            {"feature": "V4", "contribution": 0.5, "value": "-7"},
            {"feature": "Amount", "contribution": 0.25, "value": "12.5"},
        ],
        "model_version": "1",
        "scored_at": dt.datetime(2026, 3, 1, 0, 0, 1, tzinfo=dt.UTC),
        "message_id": "17",
        "publish_time": dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
        "read_at": None,
        "pass_through": '{"load_id":1}',
        "suppressed": False,
        "suppressed_before": 2,
    }
    with pipeline() as p:
        alerts = p | beam.Create([pa.RecordBatch.from_pylist([row], ALERTS)])
        _ = {"alerts": alerts} | WriteParquetBatches(str(tmp_path), {"alerts": ALERTS})
    assert pq.read_table(tmp_path / "alerts-00000-of-00001.parquet").to_pylist() == [row]


def test_a_set_without_rows_is_one_file_without_rows(tmp_path):
    with pipeline() as p:
        nothing = p | beam.Create([]) | beam.Map(lambda x: x).with_output_types(pa.RecordBatch)
        sets = {"rows": p | "Rows" >> beam.Create([batch(0, 3)]), "others": nothing}
        _ = sets | WriteParquetBatches(str(tmp_path), {"rows": SCHEMA, "others": OTHER})
    table = pq.read_table(tmp_path / "others-00000-of-00001.parquet")
    assert table.num_rows == 0
    assert table.schema == OTHER
    assert orjson.loads((tmp_path / SUCCESS).read_bytes())["files"] == [
        "others-00000-of-00001.parquet",
        "rows-00000-of-00001.parquet",
    ]
    assert not (tmp_path / TEMPORARY).exists()


def test_a_publication_that_runs_again_leaves_the_same_files(tmp_path):
    """A runner runs a bundle again whose end it has not heard of; the empty file has the same name then."""
    write = one_set(tmp_path)
    assert write._publish(b"", []) == [f"{tmp_path}/rows-00000-of-00001.parquet"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert write._publish(b"", []) == [f"{tmp_path}/rows-00000-of-00001.parquet"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failed_pipeline_leaves_no_output(tmp_path):
    def fail(batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch.column("n")[0].as_py() == 3:
            raise ValueError("this bundle fails")
        return batch

    p = pipeline()
    batches = p | beam.Create([batch(0, 3), batch(3, 5)], reshuffle=False) | beam.Map(fail)
    _ = {"rows": batches} | one_set(tmp_path)
    with pytest.raises(Exception, match="this bundle fails"):
        p.run().wait_until_finish()
    assert list(tmp_path.glob("*.parquet")) == []


def test_a_directory_that_cannot_be_made_names_file_and_flag(tmp_path):
    (tmp_path / "o").write_text("a file in the place of the directory")
    p = pipeline()
    _ = {"rows": p | beam.Create([batch(0, 3)])} | one_set(tmp_path / "o")
    with pytest.raises(FileWriteError, match=rf"--output: cannot write {tmp_path}/o/_temporary/.*rows"):
        p.run().wait_until_finish()
