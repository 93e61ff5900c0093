"""Batch in several processes gives what it gives in one: every source, every sink, and the counters."""

from __future__ import annotations

import gzip
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import create_runner
from google.cloud import bigquery

from benchmarks.beam_connectors import beam_connectors
from common.limits import SPLIT_BYTES
from common.options import OptionError
from features.ulb import FEATURES
from local.process_runner import ProcessRunner
from model.serving.options import usable_cores
from pipelines import batch, processes
from pipelines.processes import PROCESS_RUNNER
from tests.pipelines.batch_jobs import TABLES, comparable, model_flags, output_rows, write_lines
from transforms import metrics
from transforms.schema import to_bigquery


def transactions(rows: int) -> pa.Table:
    """Transactions in the ULB layout, with ids."""
    random = np.random.default_rng(3)
    columns: dict[str, Any] = {name: random.normal(0, 3, rows) for name in FEATURES}
    columns["Time"] = np.arange(rows, dtype=np.float64)
    columns["event_time"] = pa.array(np.full(rows, 1_780_000_000_000_000), pa.timestamp("us", "UTC"))
    columns["transaction_id"] = [f"t-{number}" for number in range(rows)]
    return pa.table(columns)


class Batch:
    """Runs one job with several numbers of processes.

    Attributes:
      counters: by number of processes.
    """

    def __init__(self, model_dir: Path) -> None:
        self.argv = model_flags(model_dir)
        self.counters: dict[int, dict[str, int]] = {}

    def run(self, processes: int, *argv: str) -> None:
        """Runs a job to its end."""
        result = batch.run([*self.argv, *argv, f"--processes={processes}"])
        result.wait_until_finish()
        self.counters[processes] = metrics.totals(result)

    def files(self, processes: int, output: Path, *argv: str) -> dict[str, pa.Table]:
        """The rows of a job that writes files; each process has written a part of the scores."""
        self.run(processes, *argv, f"--output={output}")
        parts = [pq.read_metadata(path).num_rows for path in output.glob("scores-*.parquet")]
        assert len(parts) == processes
        assert min(parts) > 0, "a process has had nothing to do"
        return output_rows(output)

    def check_files(self, tmp_path: Path, *argv: str) -> dict[str, pa.Table]:
        """Compares the files of one process and of two."""
        one, two = (self.files(n, tmp_path / f"scored-{n}", *argv) for n in (1, 2))
        for name in TABLES:
            assert one[name] == two[name], name
        assert self.counters[1] == self.counters[2]
        return one


@pytest.fixture
def job(model_dir) -> Batch:
    return Batch(model_dir)


@pytest.mark.integration
class TestFiles:
    def test_files_of_lines_plain_and_compressed(self, job, tmp_path):
        lines = tmp_path / "in"
        lines.mkdir()
        for number in range(3):
            write_lines(lines / f"{number}.jsonl", 1_000, seed=number)
        compressed = gzip.compress((lines / "0.jsonl").read_bytes())
        (lines / "3.jsonl.gz").write_bytes(compressed)
        rows = job.check_files(tmp_path, f"--input={lines}/*", "--input_format=jsonl")
        assert all(rows.values())
        assert job.counters[2][metrics.ROWS_IN] == 4_000

    def test_one_file_of_lines(self, job, tmp_path):
        path = tmp_path / "large.jsonl"
        write_lines(path, 5_000)
        with path.open("r+b") as file:  # some of it again and again, until it is cut in two
            part = file.read()
            for _ in range(SPLIT_BYTES // len(part) + 1):
                file.write(part)
        assert all(job.check_files(tmp_path, f"--input={path}").values())

    def test_one_parquet_file_with_all_outputs(self, job, tmp_path):
        path = tmp_path / "large.parquet"
        rows = 10_000 + SPLIT_BYTES // (8 * len(FEATURES))
        pq.write_table(transactions(rows), path, row_group_size=20_000)
        found = job.check_files(tmp_path, f"--input={path}", "--output_detail=full")
        assert len(found["scores"]) == rows
        assert found["alerts"]

    def test_a_second_job_overwrites_the_files_of_the_first(self, job, tmp_path):
        for number in range(3):
            write_lines(tmp_path / f"{number}.jsonl", 100, seed=number)
        argv = (f"--input={tmp_path}/*.jsonl", "--overwrite")
        first = job.files(3, tmp_path / "scored", *argv)
        assert job.files(2, tmp_path / "scored", *argv) == first

    def test_a_damaged_file_is_named_and_publishes_nothing(self, job, tmp_path):
        write_lines(tmp_path / "0.jsonl", 2_000)
        whole = gzip.compress((tmp_path / "0.jsonl").read_bytes())
        (tmp_path / "1.jsonl.gz").write_bytes(whole[: len(whole) // 2])
        output = tmp_path / "scored"
        with pytest.raises(RuntimeError, match=r"1\.jsonl\.gz"):
            job.run(2, f"--input={tmp_path}/*.jsonl*", "--input_format=jsonl", f"--output={output}")
        assert [*output.glob("*.parquet")] == []


@pytest.mark.integration
class TestBigQuery:
    """On the emulator. It gives one stream of a table, so that one process alone has work to do."""

    @pytest.fixture
    def store(self, bigquery_emulator, bigquery_client, dataset, job):
        """Runs a job into tables of its own, and gives their rows."""

        def run(processes: int, *argv: str) -> dict[str, pa.Table]:
            name = f"{dataset}_{processes}"
            bigquery_client.create_dataset(name)
            try:
                job.run(processes, *argv, f"--output_dataset={bigquery_client.project}.{name}")
                return {table: comparable(rows(bigquery_client, f"{name}.{table}")) for table in TABLES}
            finally:
                bigquery_client.delete_dataset(name, delete_contents=True)

        return run

    @pytest.fixture
    def table(self, bigquery_client, dataset) -> str:
        name = f"{bigquery_client.project}.{dataset}.transactions"
        sample = transactions(2_000)
        bigquery_client.create_table(bigquery.Table(name, to_bigquery(sample.schema)))
        pq.write_table(sample, file := io.BytesIO())
        config = bigquery.LoadJobConfig(source_format="PARQUET")
        bigquery_client.load_table_from_file(file, name, rewind=True, job_config=config).result()
        return name

    @pytest.mark.parametrize(
        "source",
        ["--input_table={}", "--input_query=SELECT * FROM `{}` WHERE Amount > 1"],
        ids=["table", "query"],
    )
    def test_from_a_table_to_tables(self, store, job, table, source):
        """The environment alone names the emulator, as after `anomaly local up`."""
        one, two = (store(number, source.format(table)) for number in (1, 2))
        assert one == two
        assert job.counters[1] == job.counters[2]
        assert len(one["scores"]) == job.counters[2]["scores.rows_written"] > 500
        assert one["alerts"]

    def test_by_load_jobs(self, store, bigquery_emulator, gcs_root, tmp_path, monkeypatch):
        for number in range(2):
            write_lines(tmp_path / f"{number}.jsonl", 300, seed=number)
        monkeypatch.setenv("TEST_GCS_ROOT", str(gcs_root))
        argv = [
            f"--input={tmp_path}/*.jsonl",
            "--write_method=file_loads",
            f"--project={bigquery_emulator.project}",
            "--temp_location=gs://local/tmp",
            "--beam_plugin=tests.pipelines.beam_plugin",
        ]
        with beam_connectors(bigquery_emulator, gcs_root):
            one, two = (store(number, *argv) for number in (1, 2))
        assert one == two
        assert all(one.values())


def rows(client: bigquery.Client, table: str) -> pa.Table:
    """All rows of a table."""
    found = client.query(f"SELECT * FROM `{client.project}.{table}`").result()
    return found.to_arrow(create_bqstorage_client=False)


# Options


def checked(*argv: str) -> tuple[batch.BatchOptions, PipelineOptions]:
    """The options of a job, as a launch checks them."""
    options, beam_options = batch.parse(["--input=x.jsonl", "--model=m", *argv])
    batch.check(options, beam_options)
    return options, beam_options


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--processes=4", "--runner=DataflowRunner"],
            "--processes: expected --runner=FnApiRunner, the default, with it, got --runner=DataflowRunner: ",
        ),
        (["--processes=0", "--runner=DirectRunner"], "got --runner=DirectRunner: leave out one of the two"),
        (["--processes=2", "--runner=PrismRunner"], "got --runner=PrismRunner: leave out one of the two"),
        (
            ["--processes=2", "--direct_num_workers=3"],
            "--direct_num_workers: expected no --processes with it, which sets it: leave out one",
        ),
        (["--processes=2", "--direct_running_mode=in_memory"], "--direct_running_mode: expected no --proc"),
        (["--processes=2", "--direct_running_mode", "multi_threading"], "--direct_running_mode: expected no"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(argv, said):
    with pytest.raises(OptionError, match=re.escape(said)):
        checked("--output=o", *argv)


def test_a_method_with_java_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    tables = ["--output_dataset=my-project.anomaly", "--write_method=storage_write_api"]
    checked(*tables)
    with pytest.raises(OptionError, match=r"without Java.* got 'storage_write_api': use storage_arrow"):
        checked(*tables, "--processes=2")


@pytest.mark.parametrize("runner", [[], ["--runner=FnApiRunner"], ["--runner=fnapirunner"]])
def test_processes_set_beams_options(runner):
    options, beam_options = checked("--output=o", "--processes=3", *runner)
    options.machine.apply(beam_options)
    direct = beam_options.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("multi_processing", 3)
    assert isinstance(create_runner(beam_options.view_as(StandardOptions).runner), ProcessRunner)


@pytest.mark.parametrize("cores", [1, 5])
def test_0_is_all_cores_that_this_process_may_use(monkeypatch, cores):
    assert processes.usable_cores is usable_cores
    monkeypatch.setattr(processes, "usable_cores", lambda: cores)
    options, beam_options = checked("--output=o", "--processes=0")
    options.machine.apply(beam_options)
    assert beam_options.view_as(DirectOptions).direct_num_workers == cores
    assert beam_options.view_as(StandardOptions).runner == (PROCESS_RUNNER if cores > 1 else None)


@pytest.mark.parametrize("argv", [[], ["--runner=DataflowRunner"], ["--direct_num_workers=2"]])
def test_one_process_leaves_everything_to_beam(argv):
    options, beam_options = checked("--output=o", *argv)
    before = beam_options.get_all_options()
    options.machine.apply(beam_options)
    assert beam_options.get_all_options() == before
