"""Rows a second of the batch command in one process and in several, side by side, with the start told apart.

    python -m benchmarks.processes                    some minutes, on all cores
    python -m benchmarks.processes --processes 4 --runs 5

The command runs as it is typed, JSON lines to Parquet and Parquet to Parquet, on few files and on many of one
size. The difference of the two times is work alone, and gives the rate. The rest is start-up: imports, the
model, and the worker processes. The cases take turns, and the shortest time of each counts: other programs on
the machine make a time longer, never shorter.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.sampling import timed
from common.command import command
from common.output import track
from model.serving.options import usable_cores
from model.synthetic.generator import TransactionGenerator
from publisher.files import ParquetFile
from publisher.messages import MessageSource
from publisher.publish import publish, write_jsonl

COPIES = {"jsonl": (2, 8), "parquet": (4, 24)}
"""Numbers of files, few and many: each process has a share, and the difference takes some seconds."""
SIZES = "few", "many"
NAMES = {"jsonl": "JSON lines to Parquet", "parquet": "Parquet to Parquet"}


def write_inputs(directory: Path, name: str, rows: int) -> None:
    """Trains a model, in `model`, and writes a file of each format."""
    words = [sys.executable, "-m", "common.anomaly", "train", f"--output={directory}/model", "--epochs=3"]
    subprocess.run(words, check=True, capture_output=True)

    def source() -> MessageSource:
        return MessageSource(TransactionGenerator(seed=1, cycle=rows))

    write_jsonl(directory / f"{name}.jsonl", source(), rows)
    with ParquetFile(directory / f"{name}.parquet") as sink:
        publish(source(), sink, count=rows)


def prepare(directory: Path, rows: int) -> None:
    """Trains a model and writes the files."""
    write_inputs(directory, "many-0", rows)
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
    times: dict[tuple[str, int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare(directory, options.rows)
        for suffix, number in track(cases * options.runs, "cases"):
            for size, copies in zip(SIZES, COPIES[suffix], strict=True):
                time = seconds(directory, f"{size}-*.{suffix}", copies * options.rows, number)
                times.setdefault((suffix, number, size), []).append(time)
    print(
        "| | rows | processes | times, s | start-up, s | work, s | rows/s of the work | times one process |"
    )
    print("|---|---:|---:|---|---:|---:|---:|---:|")
    rates: dict[tuple[str, int], float] = {}
    for suffix, number in cases:
        few, many = COPIES[suffix]
        long = min(times[suffix, number, "many"])
        rate = (many - few) * options.rows / (long - min(times[suffix, number, "few"]))
        rates[suffix, number] = rate
        work = many * options.rows / rate
        every = ", ".join(f"{time:.1f}" for time in sorted(times[suffix, number, "many"]))
        cells = [
            NAMES[suffix],
            f"{many * options.rows:,}",
            number,
            every,
            f"{long - work:.1f}",
            f"{work:.1f}",
        ]
        cells += [f"{rate:,.0f}", f"{rate / rates[suffix, 1]:.2f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
