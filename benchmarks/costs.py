"""Measures the figures that `anomaly cost` takes as flags, and prints them with the estimate.

    python -m benchmarks.costs
    python -m benchmarks.costs --rows 200000 --runs 5

The rate of one core and the bytes of messages, files and rows are measured now, on this machine: the batch
pipeline, JSON lines in, Parquet out, medians of several runs, by CPU time. Start-up is part of it. The rate
of a stream comes from `python -m benchmarks.stream`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# Before numpy and torch are loaded: one core is what is measured.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import pyarrow as pa
import pyarrow.parquet as pq

from cloud import cost
from common.command import Parser, command
from common.options import flags_of
from common.output import print_rows
from model.synthetic.generator import TransactionGenerator
from model.train import main as train
from pipelines import batch
from publisher.messages import MessageSource
from publisher.publish import write_jsonl


def measure(rows: int, runs: int) -> cost.Measured:
    """Runs the batch pipeline and weighs its input and output."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with contextlib.redirect_stdout(sys.stderr):
            train(["--output", str(place / "model"), "--epochs", "5"])
        lines = place / "in.jsonl"
        write_jsonl(lines, MessageSource(TransactionGenerator(seed=1, cycle=rows)), rows)
        rates = []
        for run in range(runs):
            output = place / f"out{run}"
            started = time.process_time()
            batch.run(
                [f"--input={lines}", f"--model={place / 'model'}", f"--output={output}"]
            ).wait_until_finish()
            rates.append(rows / (time.process_time() - started))
        files = list(output.glob("scores-*.parquet"))
        scores = pa.concat_tables(map(pq.read_table, files))
        return replace(
            cost.Measured(),
            batch_rate=statistics.median(rates),
            message_bytes=lines.stat().st_size / rows,
            row_bytes=scores.nbytes / scores.num_rows,
            file_bytes=sum(file.stat().st_size for file in files) / scores.num_rows,
        )


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("python -m benchmarks.costs", __doc__)
    parser.add_argument("--rows", type=int, default=300_000, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args(argv)
    measured = measure(args.rows, args.runs)
    flags = flags_of({name: round(value) for name, value in vars(measured).items()})
    print(f"anomaly cost {' '.join(flags)}\n")
    options = cost.CostOptions(measured, cost.Assumed(), cost.Prices())
    print_rows(cost.rows(cost.estimate(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
