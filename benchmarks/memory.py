"""The peak memory of the batch command on few and on many rows, side by side.

    python -m benchmarks.memory                       some minutes, and 4 GB of disk
    python -m benchmarks.memory --rows 100000 400000

The command runs as it is typed, in one process, JSON lines to Parquet and Parquet to Parquet, on copies of
one file. The peak is VmHWM of Linux, for the whole process: Python, Beam and PyTorch take some 400 MB of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import NAMES, write_inputs
from common.command import Parser, command
from common.output import track

ROWS = 1_000_000, 4_000_000
_FILE_ROWS = 250_000
_CODE = """
import sys
from common.anomaly import main
status = main(sys.argv[1:])
# Not getrusage: its peak counts the process that this one was forked from.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""


def peak_mb(directory: Path, form: str, copies: int) -> float:
    """Returns the peak memory of a job over copies of the file, in MB."""
    place = directory / "in"
    place.mkdir()
    for number in range(copies):
        (place / f"{number}.{form}").hardlink_to(directory / f"rows.{form}")
    flags = [f"--input={place}", f"--model={directory}/model", f"--output={directory}/out"]
    words = [sys.executable, "-c", _CODE, "batch", *flags]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    for folder in (place, directory / "out"):
        shutil.rmtree(folder)
    return int(done.stdout.split()[-1]) / 1_000


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("python -m benchmarks.memory", __doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=ROWS, metavar="N", help="rows of the two jobs")
    args = parser.parse_args(argv)
    few, many = args.rows
    file_rows = min(_FILE_ROWS, few)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_inputs(directory, "rows", file_rows)
        cases = [(form, rows) for form in NAMES for rows in (few, many)]
        peaks = {
            (form, rows): peak_mb(directory, form, rows // file_rows)
            for form, rows in track(cases, "Scoring")
        }
    print(f"| | MB at {few:,} rows | MB at {many:,} rows | bytes a row between them |")
    print("|---|---:|---:|---:|")
    for form, text in NAMES.items():
        low, high = peaks[form, few], peaks[form, many]
        print(f"| {text} | {low:,.0f} | {high:,.0f} | {(high - low) * 1e6 / (many - few):,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
