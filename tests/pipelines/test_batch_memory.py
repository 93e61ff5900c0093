"""A batch job needs little memory for input that is small and becomes large."""

from __future__ import annotations

import gzip
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.test_layout import ROOT

LINES = 400
CODE = """
import sys
from pipelines import batch
status = batch.main(sys.argv[1:])
# Not getrusage: its peak counts the process that this one was forked from.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""


@pytest.mark.integration
def test_long_lines_of_a_small_file_do_not_fill_the_memory(model_dir, tmp_path):
    line = b'{"transaction_id":"' + b"x" * 1_000_000 + b'"}'
    path = tmp_path / "long.jsonl.gz"
    path.write_bytes(gzip.compress((line + b"\n") * LINES))
    assert path.stat().st_size < 1_000_000
    command = [
        sys.executable,
        "-c",
        CODE,
        f"--input={path}",
        f"--model={model_dir}",
        f"--output={tmp_path}/out",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, counters, peak_kb = done.stdout.splitlines()
    expected = f"rows in: {LINES}, rows scored: 0, dead letters: {LINES}, alerts: 0"
    assert counters == f"{expected}, ids derived: 0, times defaulted: 0"
    (file,) = (tmp_path / "out").glob("error_records-*.parquet")
    letters = pq.ParquetFile(file)
    assert letters.metadata.num_rows == LINES
    assert next(letters.iter_batches(1))["payloadBytes"].to_pylist() == [line]
    assert int(peak_kb) < 1_200_000  # half of it is Beam, Arrow and PyTorch
