"""Rows a second of the batch command in one process and in several, side by side, with the start told apart.

    python -m benchmarks.processes                    some minutes, on all cores
    python -m benchmarks.processes --processes 4 --runs 5

The command runs as it is typed, JSON lines to Parquet and Parquet to Parquet, on few files and on many of one
size. The difference of the two times is work alone, and gives the rate. The rest is start-up: imports, the
model, and the worker processes. The cases take turns, so that a noisy machine is noisy for all of them, and
ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from benchmarks.sampling import timed
from common.command import command
from model.serving.options import usable_cores
from model.synthetic.generator import TransactionGenerator
from publisher.files import ParquetFile
from publisher.messages import MessageSource
from publisher.publish import publish, write_jsonl

COPIES = {"jsonl": (2, 8), "parquet": (4, 24)}
"""Numbers of files, few and many: each process has a share, and the difference takes some seconds."""
NAMES = {"jsonl": "JSON lines to Parquet", "parquet": "Parquet to Parquet"}


@dataclass(frozen=True)
class Measured:
    """One round of a case.

    Attributes:
      start: seconds of start-up.
      work: seconds of work for the rows of all files.
      rate: rows a second of the work.
    """

    start: float
    work: float
    rate: float


def prepare(directory: Path, rows: int) -> None:
    """Trains a model and writes the files."""
    words = [sys.executable, "-m", "common.anomaly", "train", f"--output={directory}/model", "--epochs=3"]
    subprocess.run(words, check=True, capture_output=True)

    def source() -> MessageSource:
        return MessageSource(TransactionGenerator(seed=1, cycle=rows))

    write_jsonl(directory / "many-0.jsonl", source(), rows)
    with ParquetFile(directory / "many-0.parquet") as sink:
        publish(source(), sink, count=rows)
    for suffix, (few, many) in COPIES.items():
        for number in range(many):
            path = directory / f"many-{number}.{suffix}"
            if number:
                shutil.copy(directory / f"many-0.{suffix}", path)
            if number < few:
                (directory / f"few-{number}.{suffix}").hardlink_to(path)


def seconds(directory: Path, pattern: str, rows: int, processes: int) -> float:
    """Runs the command once; returns the time that it takes, after a look at what it has written."""
    output = directory / "scored"
    shutil.rmtree(output, ignore_errors=True)
    flags = [f"--input={directory}/{pattern}", f"--model={directory}/model", f"--output={output}"]
    words = [sys.executable, "-m", "common.anomaly", "batch", *flags, f"--processes={processes}"]
    printed: list[str] = []
    time = timed(
        lambda: printed.append(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    )
    scored = int(re.findall(r"rows scored: ([\d,]+)", printed[0])[0].replace(",", ""))
    stored = sum(pq.read_metadata(path).num_rows for path in output.glob("scores-*.parquet"))
    assert scored == stored == rows, (scored, stored, rows)
    return time


def measure(directory: Path, suffix: str, rows: int, processes: int) -> Measured:
    """Runs a case on few files and on many."""
    few, many = COPIES[suffix]
    short = seconds(directory, f"few-*.{suffix}", few * rows, processes)
    long = seconds(directory, f"many-*.{suffix}", many * rows, processes)
    rate = (many - few) * rows / max(long - short, 1e-9)
    work = many * rows / rate
    return Measured(long - work, work, rate)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=150_000, help="rows of a file (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=usable_cores(), help="(default: all cores)")
    parser.add_argument("--runs", type=int, default=3, help="rounds (default: %(default)s)")
    options = parser.parse_args(argv)
    cases = [(suffix, number) for suffix in COPIES for number in (1, options.processes)]
    rounds: dict[tuple[str, int], list[Measured]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare(directory, options.rows)
        for case in tqdm(cases * options.runs, unit="case", disable=not sys.stderr.isatty()):
            rounds[case].append(measure(directory, case[0], options.rows, case[1]))
    print("| | rows | processes | start-up, s | work, s | rows/s of the work | times one process, by round |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for suffix, number in cases:
        found, alone = rounds[suffix, number], rounds[suffix, 1]
        start, work, rate = (
            statistics.median(getattr(one, field) for one in found) for field in ("start", "work", "rate")
        )
        ratios = [mine.rate / theirs.rate for mine, theirs in zip(found, alone, strict=True)]
        times = "1" if number == 1 else ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
        rows = COPIES[suffix][1] * options.rows
        print(f"| {NAMES[suffix]} | {rows:,} | {number} | {start:.1f} | {work:.1f} | {rate:,.0f} | {times} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
