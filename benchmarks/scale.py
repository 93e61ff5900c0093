"""Rows a second, CPU time and peak memory of the batch command, on few and many rows, in one process and two.

    python -m benchmarks.scale                        half an hour, and 4 GB of disk
    python -m benchmarks.scale --rows 100000 400000 --runs 2
    python -m benchmarks.scale --directory /mnt/large --format json

The command runs as it is typed, JSON lines to Parquet and Parquet to Parquet, on hard links to one file. The
cases take turns, and of the runs of a case the shortest time and the least CPU time count: other programs on
the machine make both longer, never shorter. CPU time and memory are those of all processes of the job. The
peak is the sum of VmHWM of Linux over them, and so an upper bound: Python, Beam and PyTorch take some 400 MB
of each. "A row" is the difference of many and few rows, without the start-up.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from benchmarks.processes import NAMES, write_inputs
from common.command import Parser, command
from common.output import track

ROWS = 1_000_000, 10_000_000
_FILE_ROWS = 250_000
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Case:
    """One job: the form of its input, its rows and its processes."""

    form: str
    rows: int
    processes: int


@dataclass(frozen=True)
class Run:
    """The cost of a job: seconds by the clock, of CPU of all processes and of the busiest; its peak in MB."""

    seconds: float
    cpu_seconds: float
    busiest_seconds: float
    peak_mb: float


def look(pid: int, peaks: dict[int, float], cpu: dict[int, float]) -> None:
    """Notes peak memory (VmHWM, in MB) and CPU time of a process and all below it, while they are there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                cpu[process.pid] = sum(process.cpu_times()[:2])
                text = Path(f"/proc/{process.pid}/status").read_text()
                if match := re.search(r"VmHWM:\s+(\d+)", text):
                    peaks[process.pid] = int(match[1]) / 1_000


def run(directory: Path, case: Case) -> Run:
    """Runs a job over copies of the file, and checks what it has written."""
    place, output = directory / "in", directory / "out"
    for folder in (place, output):
        shutil.rmtree(folder, ignore_errors=True)
    place.mkdir()
    for number in range(case.rows // min(_FILE_ROWS, case.rows)):
        (place / f"{number}.{case.form}").hardlink_to(directory / f"rows.{case.form}")
    flags = [f"--input={place}", f"--model={directory}/model", f"--output={output}"]
    words = [sys.executable, "-m", "common.anomaly", "batch", *flags, f"--processes={case.processes}"]
    peaks: dict[int, float] = {}
    cpu: dict[int, float] = {}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as job:
        while job.poll() is None:
            look(job.pid, peaks, cpu)
            time.sleep(_LOOK_SECONDS)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    stored = sum(pq.read_metadata(path).num_rows for path in output.glob("scores-*.parquet"))
    assert (job.returncode, stored) == (0, case.rows), (job.returncode, stored, case)
    for folder in (place, output):
        shutil.rmtree(folder)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, used, max(cpu.values()), sum(peaks.values()))


def best(runs: Sequence[Run]) -> Run:
    """Takes the shortest times of several runs, and the largest peak."""
    return Run(
        min(each.seconds for each in runs),
        min(each.cpu_seconds for each in runs),
        min(each.busiest_seconds for each in runs),
        max(each.peak_mb for each in runs),
    )


def table(results: Mapping[Case, Run]) -> list[str]:
    """Writes the lines of the table; `results` has few and many rows of each form and number of processes."""
    lines = [
        "| | processes | rows | s | CPU s | peak MB | rows/s | CPU us a row | bytes a row "
        "| times one process | by CPU time |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in sorted(results, key=lambda case: (list(NAMES).index(case.form), case.processes, case.rows)):
        mine, few = results[case], min(each.rows for each in results)
        measured = [f"{mine.seconds:.1f}", f"{mine.cpu_seconds:.1f}", f"{mine.peak_mb:,.0f}"]
        cells = [NAMES[case.form], str(case.processes), f"{case.rows:,}", *measured]
        cells.append(f"{case.rows / mine.seconds:,.0f}")
        if rows := case.rows - few:
            base = results[replace(case, rows=few)]
            one, one_base = (results[Case(case.form, each, 1)] for each in (case.rows, few))
            by_clock = (one.seconds - one_base.seconds) / (mine.seconds - base.seconds)
            busiest = mine.busiest_seconds - base.busiest_seconds
            cells += [
                f"{(mine.cpu_seconds - base.cpu_seconds) / rows * 1e6:.2f}",
                f"{(mine.peak_mb - base.peak_mb) * 1e6 / rows:,.0f}",
                f"{by_clock:.2f}",
                f"{(one.busiest_seconds - one_base.busiest_seconds) / busiest:.2f}",
            ]
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("python -m benchmarks.scale", __doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=ROWS, metavar="N", help="rows of the two jobs")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--forms", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--runs", type=int, default=1, help="rounds; the best counts (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="for the files (default: the system's)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args(argv)
    cases = [
        Case(form, rows, number) for rows in args.rows for form in args.forms for number in args.processes
    ]
    runs: dict[Case, list[Run]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        directory = Path(name)
        write_inputs(directory, "rows", min(_FILE_ROWS, *args.rows))
        for case in track(cases * args.runs, "Scoring"):
            runs[case].append(run(directory, case))
            print(case, runs[case][-1], file=sys.stderr, flush=True)
    results = {case: best(each) for case, each in runs.items()}
    if args.format == "json":
        print(json.dumps([asdict(case) | asdict(each) for case, each in results.items()], indent=1))
    else:
        print("\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
