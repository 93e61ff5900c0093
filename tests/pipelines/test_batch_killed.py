"""A batch job that is killed while it publishes its files leaves a mark; the same command completes them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import batch
from tests.pipelines.batch_jobs import TABLES, model_flags, write_lines
from tests.test_layout import ROOT
from transforms.publication import PUBLISHING, SUCCESS, TEMPORARY

ROWS = 300
OLD_ROWS = 7
"""In each set of files of an earlier job, in two files a set."""


def rows(directory: Path) -> dict[str, int]:
    """Counts the rows that a reader of all files of a set gets."""
    return {
        name: sum(pq.read_metadata(path).num_rows for path in directory.glob(f"{name}-*.parquet"))
        for name in TABLES
    }


def write_old(directory: Path) -> None:
    """Writes the complete output of an earlier job."""
    directory.mkdir()
    for name in TABLES:
        for number, count in enumerate((4, OLD_ROWS - 4)):
            table = pa.table({"n": list(range(count))})
            pq.write_table(table, directory / f"{name}-{number:05d}-of-00002.parquet")
    (directory / SUCCESS).write_bytes(b"{}")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("overwrite", "change"),
    [(False, change) for change in (1, 2, 3, 5, 6)] + [(True, change) for change in (1, 2, 3, 4, 8, 12, 13)],
)
def test_what_a_killed_job_leaves_is_told_apart_and_completed(overwrite, change, model_dir, tmp_path):
    """Changes: the mark, with old files the removal of _SUCCESS, 3 renames, removals, _SUCCESS, the mark."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    write_lines(source, ROWS)
    flags = [f"--input={source}", f"--output={output}", *model_flags(model_dir)]
    if overwrite:
        write_old(output)
        flags.append("--overwrite")
    killed = [sys.executable, "-m", "tests.pipelines.killed", f"{output}/", str(change), "anomaly", "batch"]
    done = subprocess.run([*killed, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = rows(output)
    if not (output / PUBLISHING).exists():  # nothing has been published, nothing taken away
        assert left == dict.fromkeys(TABLES, OLD_ROWS if overwrite else 0)
        assert (output / SUCCESS).exists() is overwrite
    if overwrite and change <= 5:
        assert all(count >= OLD_ROWS for count in left.values())  # the old set outlasts the renames
    assert batch.main(flags) == 0
    complete = rows(output)
    assert complete["scores"] + complete["error_records"] == ROWS
    assert complete["alerts"] > 0
    assert not (output / PUBLISHING).exists()
    assert not (output / TEMPORARY).exists()
    files = sorted(path.name for path in output.glob("*.parquet"))
    assert orjson.loads((output / SUCCESS).read_bytes())["files"] == files
    assert len(files) == len(TABLES)
    if not overwrite:
        assert batch.main(flags) == 2  # now it is complete, and is not replaced unasked
