"""Commands on a full disk: the error names the file and what to do, and is one line."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

import features.__main__
import publisher.__main__
import templates.build
from common.command import command
from common.writing import FileWriteError
from local.daemon import Daemon
from local.process import LocalStackError
from local.stack import LocalStack
from model.serving.torchserve import archives
from model.serving.torchserve.config import Layout
from operations import query
from operations.report.__main__ import write

WHAT_TO_DO = "No space left on device; make room there, or write to another place"


@pytest.mark.parametrize("flag", ["--jsonl", "--parquet", "--csv", "--labels"])
def test_the_publisher_names_the_file(full_disk, tmp_path, capsys, flag):
    path = full_disk / "messages"
    other = [f"--jsonl={tmp_path}/messages"] if flag == "--labels" else []
    assert publisher.__main__.main([f"{flag}={path}", *other, "--count=5000", "--quiet"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: cannot write {path}: {WHAT_TO_DO}"


def test_a_feature_spec_names_file_and_flag(full_disk, tmp_path, capsys):
    parquet.write_table(pa.table({"amount": [1.0, 2.5] * 50}), tmp_path / "rows.parquet")
    path = full_disk / "features.yaml"
    assert features.__main__.main(["infer", f"--data={tmp_path}/rows.parquet", f"--output={path}"]) == 1
    assert capsys.readouterr().err == f"error: --output: cannot write {path}: {WHAT_TO_DO}\n"


def test_the_specs_of_templates_name_file_and_flag(full_disk, capsys):
    flags = ["--project=my-project", "--region=europe-west1", "--bucket=my-bucket"]
    assert templates.build.main([*flags, f"--offline={full_disk}/specs"]) == 1
    error = f"error: --offline: cannot write {full_disk}/specs/streaming.json: {WHAT_TO_DO}\n"
    assert capsys.readouterr().err == error


def test_a_page_and_a_picture_name_file_and_flag(full_disk):
    with pytest.raises(FileWriteError, match=f"^--html: cannot write {full_disk}/a/page.html: {WHAT_TO_DO}$"):
        write(full_disk / "a" / "page.html", b"page")
    pytest.importorskip("matplotlib", reason="drawing needs the extra local")
    rows = [{"account_id": "a", "alerts": 2, "high": 1, "max_score": 3.0}]
    with pytest.raises(FileWriteError, match=f"^--plot: cannot write {full_disk}/a.png: {WHAT_TO_DO}$"):
        query._plot(full_disk / "a.png", "anomalies_by_account", rows)


def test_servers_name_the_file(full_disk, tmp_path):
    layout = Layout(full_disk / "run")
    layout.prepare()
    (tmp_path / "a.mar").write_bytes(b"archive")
    with pytest.raises(FileWriteError, match=f"^--run_dir: cannot write {layout.model_store}/a.mar: "):
        archives.add_archive(str(tmp_path / "a.mar"), layout)


@pytest.mark.integration
def test_the_state_of_the_local_stack_names_the_file(full_disk):
    full_disk.chmod(0o700)
    with pytest.raises((FileWriteError, LocalStackError), match=f"^--state_dir: cannot write {full_disk}/x."):
        Daemon("x", full_disk).serve(LocalStack(pubsub="embedded", bigquery=False))


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_standard_output_that_is_full_is_one_line(full_disk, rows):
    """Few rows wait in a buffer until the command has ended."""
    program = (
        "from common.command import command\n"
        f"main = command(lambda: print('row\\n' * {rows}))\n"
        "raise SystemExit(main())"
    )
    with (full_disk / "rows.csv").open("wb") as file:
        done = subprocess.run([sys.executable, "-c", program], stdout=file, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, f"error: cannot write the output: {WHAT_TO_DO}\n")


def test_a_file_that_a_library_writes_is_one_line(full_disk, capsys):
    @command
    def main() -> None:
        (full_disk / "temporary").write_text("x")

    assert main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write ")
    assert error.endswith(": No space left on device; make room there\n")
