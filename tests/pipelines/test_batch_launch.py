"""Options that the batch pipeline understands and refuses at launch, on real files and tables."""

from __future__ import annotations

import dataclasses
import datetime as dt
import gzip
import io
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery

from common.clients import BigQueryEndpoints
from common.options import OptionError
from features.ulb import FEATURES
from local.gcs import local_gcs
from model import artifact
from pipelines import batch, lookups
from transforms import metrics
from transforms.bigquery.source import create_streams
from transforms.schema import to_bigquery


def ulb(rows: int = 5, **columns: object) -> pa.Table:
    """Transactions in the ULB layout; `columns` replace or add, and None takes away."""
    values_by_name = {name: np.arange(rows) + i / 100 for i, name in enumerate(FEATURES)} | columns
    return pa.table({name: values for name, values in values_by_name.items() if values is not None})


def run_batch(argv: list[str]) -> dict[str, int]:
    """The counters of a job."""
    result = batch.run(argv)
    result.wait_until_finish()
    return metrics.totals(result)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("a.jsonl", "jsonl"),
        ("gs://b/2026-*.json", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.jsonl.gz", "jsonl"),
        ("a.ndjson.bz2", "jsonl"),
        ("a.JSON.GZ", "jsonl"),
        ("a-*.jsonl.zst", "jsonl"),
        ("a.jsonl.xz", "jsonl"),
        ("a.csv.gz", "csv"),
        ("a.tsv", "csv"),
        ("a.pq", "parquet"),
        ("a.gz", None),
        ("gs://b/rows/", None),
        ("part-00000", None),
    ],
)
def test_the_ending_tells_the_format_behind_that_of_the_compression(path, form):
    assert batch.BatchSource(input=path).format == form
    assert batch.BatchSource(input=path, input_format="csv").format == "csv"


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


@pytest.mark.parametrize("flags", [[], ["--medium_threshold=0", "--high_threshold=1e9"]])
def test_workers_refuse_a_model_that_was_trained_into_the_directory_after_the_launch(
    model_dir, tmp_path, flags
):
    model, path = shutil.copytree(model_dir, tmp_path / "model"), tmp_path / "rows.parquet"
    pq.write_table(ulb(), path)
    argv = [f"--input={path}", f"--model={model}", f"--output={tmp_path / 'scored'}", *flags]
    options, _ = batch.parse(argv)
    pipeline = beam.Pipeline("FnApiRunner")
    batch.build(pipeline, options, options.detection.manifest())
    launched = artifact.read(model)
    thresholds = {"medium": 1.0, "high": 2.0}
    retrained = dataclasses.replace(launched.manifest, thresholds=thresholds, model_version="test-2")
    artifact.write(model, retrained, [model / name for name in launched.manifest.files])
    with pytest.raises(Exception, match=r"at launch .* got version test-2 .* launch the job again"):
        pipeline.run().wait_until_finish()
    assert list((tmp_path / "scored").glob("*.parquet")) == []
    assert run_batch(argv)[metrics.ROWS_SCORED] == 5  # the next launch takes it


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
    make_table, bigquery_flags, bigquery_client, model_dir, source
):
    table = make_table(ulb(account_id=["a"] * 5, notes=["a note"] * 5, Class=[0] * 5))
    argv = [source.format(table), "--model=m", "--output=o", *bigquery_flags]
    options, _ = batch.parse(argv)
    read, _ = batch.source_of(options, artifact.verify(model_dir), dt.datetime.now(dt.UTC))
    read.project, read.max_streams = bigquery_client.project, 1
    (stream,) = create_streams(read)
    names = pa.ipc.read_schema(pa.py_buffer(stream.schema)).names
    assert sorted(names) == sorted(["account_id", *FEATURES])


def refused(argv: list[str]) -> str:
    """The error of a launch that ends before the job."""
    with pytest.raises(OptionError) as error:
        batch.run(argv)
    return str(error.value)


class TestOutput:
    @pytest.fixture
    def argv(self, model_dir, tmp_path) -> list[str]:
        pq.write_table(ulb(), tmp_path / "in.parquet")
        return [f"--input={tmp_path}/in.parquet", f"--model={model_dir}"]

    def test_a_second_job_is_refused_unless_it_may_overwrite(self, argv, tmp_path):
        output = tmp_path / "scored"
        argv.append(f"--output={output}")
        run_batch(argv)
        (first,) = output.glob("scores-*")
        # As if there had been more workers: other names than those that the second job gives its files.
        for name in ("scores", "alerts", "error_records"):
            (output / f"{name}-00000-of-00001.parquet").rename(output / f"{name}-00001-of-00003.parquet")
        error = refused(argv)
        assert f"--output={output} has 3 files of an earlier job, such as {output}/scores-0000" in error
        assert "pass another directory, or --overwrite" in error
        pq.write_table(ulb(7), tmp_path / "in.parquet")
        assert run_batch([*argv, "--overwrite"])[metrics.ROWS_SCORED] == 7
        assert sorted(path.name for path in output.glob("*.parquet")) == [
            "alerts-00000-of-00001.parquet",
            "error_records-00000-of-00001.parquet",
            "scores-00000-of-00001.parquet",
        ]
        assert pq.read_table(first).num_rows == 7

    def test_a_job_that_may_overwrite_and_fails_leaves_what_was_there(self, argv, model_dir, tmp_path):
        output = tmp_path / "scored"
        argv.append(f"--output={output}")
        run_batch(argv)
        before = {path.name: path.read_bytes() for path in output.glob("*.parquet")}
        (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(os.urandom(1000))[:-100])
        with pytest.raises(Exception, match=r"cut\.jsonl\.gz: .* cut off"):
            run_batch([f"--input={tmp_path}/cut.jsonl.gz", *argv[1:], "--overwrite"])
        assert {path.name: path.read_bytes() for path in output.glob("*.parquet")} == before

    def test_it_holds_for_cloud_storage(self, argv, tmp_path):
        (tmp_path / "bucket").mkdir()
        with local_gcs(tmp_path):
            argv.append("--output=gs://bucket/scored/")
            run_batch(argv)
            error = refused(argv)
            assert "such as gs://bucket/scored/scores-00000-of-00001.parquet" in error
            run_batch([*argv, "--overwrite"])
            assert len(list((tmp_path / "bucket/scored").glob("*.parquet"))) == 3

    def test_what_cannot_be_listed_is_left_to_the_job(self, argv, tmp_path, caplog):
        lookups.check_output("no-such-file-system://there/scored", overwrite=False)
        assert "no-such-file-system://there/scored: cannot look for files of an earlier job" in caplog.text

    def test_a_file_in_the_way_is_named(self, argv, tmp_path):
        (tmp_path / "file").touch()
        for output in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
            error = refused([*argv, f"--output={output}"])
            assert f"--output={output}: {tmp_path}/file is a file, not a directory" in error

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_directory_that_may_not_be_written_is_named(self, argv, tmp_path):
        (tmp_path / "closed").mkdir(mode=0o500)
        error = refused([*argv, f"--output={tmp_path}/closed/scored"])
        assert f"no permission to write in {tmp_path}/closed" in error

    def test_a_pattern_is_no_directory(self, argv):
        assert "--output=out[1]: *, ? and [ make a pattern of it" in refused([*argv, "--output=out[1]"])

    def test_overwriting_is_for_files(self, argv):
        error = refused([*argv, "--output_dataset=my-project.anomaly", "--overwrite"])
        assert "pass their directory as --output" in error


class TestLocalFiles:
    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"V3": None}, "two.parquet: The source has no column V3. It needs the 30 feature columns"),
            ({"V3": [True] * 5}, "two.parquet: Column 'V3' is bool, not a number"),
            ({"event_time": [True] * 5}, "two.parquet: Column 'event_time' is bool, not a timestamp"),
        ],
    )
    def test_parquet_without_what_a_transaction_needs_is_named(self, model_dir, tmp_path, columns, reason):
        pq.write_table(ulb(), tmp_path / "one.parquet")
        pq.write_table(ulb(**columns), tmp_path / "two.parquet")
        error = refused([f"--input={tmp_path}/*.parquet", f"--model={model_dir}", f"--output={tmp_path}/o"])
        assert f"--input={tmp_path}/*.parquet: {tmp_path}/{reason}" in error

    @pytest.mark.parametrize("name", ["lines.parquet", "rows.parquet.gz"])
    def test_what_is_not_parquet_is_named(self, tmp_path, name):
        (tmp_path / name).write_bytes(gzip.compress(b"{}") if name.endswith("gz") else b"{}\n" * 10)
        error = refused([f"--input={tmp_path}/{name}", "--model=m", "--output=o"])
        assert f"{tmp_path}/{name}: not a Parquet file" in error
        assert error.endswith("; pass --input_format=jsonl")

    @pytest.mark.parametrize(
        ("name", "content"),
        [("none.parquet", b""), ("none.csv", b""), ("wide.csv", "Time,V1\n0,1\n".encode("utf-16"))],
    )
    def test_no_other_format_is_proposed_for_what_has_none(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        error = refused([f"--input={tmp_path}/{name}", "--model=m", "--output=o"])
        assert f"{tmp_path}/{name}" in error
        assert "--input_format" not in error

    def test_a_directory_without_a_file_is_named(self, tmp_path):
        (tmp_path / "_SUCCESS").touch()
        error = refused([f"--input={tmp_path}", "--model=m", "--output=o"])
        assert f"--input={tmp_path}: no such file" in error

    @pytest.mark.parametrize("flag", ["--input", "--input_query"])
    @pytest.mark.parametrize("value", ["", "  "])
    def test_nothing_is_no_source(self, flag, value):
        assert f"{flag} is empty: pass a " in refused([f"{flag}={value}", "--model=m", "--output=o"])


class TestTable:
    @pytest.fixture
    def argv(self, model_dir, tmp_path, bigquery_flags) -> list[str]:
        return [f"--model={model_dir}", f"--output={tmp_path}/scored", *bigquery_flags]

    @pytest.mark.integration
    def test_one_that_is_not_there_is_named(self, argv, bigquery_client, dataset):
        for name in (f"{bigquery_client.project}.{dataset}.nowhere", f"{bigquery_client.project}.no.where"):
            error = refused([f"--input_table={name}", *argv])
            assert f"--input_table={name}: no such table; `bq ls " in error

    @pytest.mark.integration
    @pytest.mark.parametrize(
        ("columns", "reason"),
        [
            ({"V3": None}, "The source has no column V3. It needs the 30 feature columns"),
            ({"V3": [True] * 5}, "Column 'V3' is bool, not a number"),
            ({"V3": None, "features": [1.0] * 5}, "Column 'features' is double, not a list of 30 numbers"),
        ],
    )
    def test_one_without_what_a_transaction_needs_is_named(self, argv, make_table, columns, reason):
        table = make_table(ulb(**columns))
        error = refused([f"--input_table={table}", *argv])
        assert f"--input_table={table}: {reason}" in error
        assert "--input_query can rename and convert columns" in error

    @pytest.mark.integration
    def test_a_view_is_named(self, argv, make_table, bigquery_client, dataset):
        view = bigquery.Table(f"{bigquery_client.project}.{dataset}.seen")
        view.view_query = f"SELECT * FROM `{make_table(ulb())}`"
        bigquery_client.create_table(view)
        error = refused([f"--input_table={bigquery_client.project}.{dataset}.seen", *argv])
        assert "is a view, which has no rows of its own; use --input_query" in error

    @pytest.mark.integration
    def test_one_that_has_all_is_read(self, argv, make_table):
        table = make_table(ulb(account_id=["a"] * 5, event_time=[dt.datetime.now(dt.UTC)] * 5))
        assert run_batch([f"--input_table={table}", *argv])[metrics.ROWS_SCORED] == 5

    def test_one_that_may_not_be_looked_up_is_left_to_the_job(self, caplog):
        answer = {"error": {"code": 403, "message": "Access Denied: bigquery.tables.get", "errors": []}}
        with answering(403, answer) as url:
            lookups.check_table("my-project.data.table", None, BigQueryEndpoints(url))
        assert "my-project.data.table: cannot look it up, which is left to the job: 403" in caplog.text

    def test_nobody_waits_for_a_bigquery_that_does_not_answer(self, monkeypatch, caplog):
        monkeypatch.setattr(lookups, "LOOK_SECONDS", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            endpoints = BigQueryEndpoints(f"http://127.0.0.1:{silent.getsockname()[1]}")
            lookups.check_table("my-project.data.table", None, endpoints)
        assert "cannot look it up, which is left to the job" in caplog.text


@contextmanager
def answering(status: int, body: dict) -> Iterator[str]:
    """A server that gives one answer to every GET."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_look_ends_in_time():
    with pytest.raises(TimeoutError, match="no answer in 0 seconds"):
        lookups.within(0.05, lambda: threading.Event().wait(5))
