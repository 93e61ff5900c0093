"""Costs of the pipelines on Google Cloud: per million transactions, and while nothing happens.

    python -m benchmarks.costs
    python -m benchmarks.costs --efficiency 0.25 --format json

The rate of one core and the bytes of messages and rows are measured now, on this machine: the batch
pipeline, JSON lines in, Parquet out, medians of several runs. The prices are list prices of one region, with
their date, in common/prices.json; look up today's and change them there. What cannot be measured without a
Google account is an assumption, and is a flag: `--efficiency`, the share of this machine's rate that a
Dataflow core gives, which has to read Pub/Sub in small bundles and write to BigQuery over the network;
`--scu-million` and `--scu-idle`, the compute units of Streaming Engine. cloud.launch starts a stream
at_least_once, which bills Streaming Engine by these units; nobody publishes how many a message takes, so read
them off the metrics of a job of your own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Before numpy and torch are loaded: one core is what is measured.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import pyarrow as pa
import pyarrow.parquet as pq

from common.command import command
from common.prices import HOURS_A_MONTH, load_prices, price_note
from model.synthetic.generator import TransactionGenerator
from model.train import main as train
from pipelines import batch
from publisher.messages import MessageSource
from publisher.publish import write_jsonl

PRICES_OF = price_note()
PRICES = load_prices()["pipelines"]
# n2-standard-2: the default of cloud.launch.
VCPUS, MEMORY_GB = 2, 8
BATCH_DISK_GB, STREAM_DISK_GB = 25, 30
GIB = 1024**3
RETENTION_MONTHS = 1 / 30.4
"""The topic keeps its messages for a day, so that a subscription can go back; see `anomaly resources`."""


@dataclass(frozen=True)
class Measured:
    """Of this machine.

    Attributes:
      rate: transactions a second of one core.
      message_bytes: mean size of a message, without attributes.
      row_bytes: mean size of a row of scores in Arrow, as the Storage Write API takes it.
    """

    rate: float
    message_bytes: float
    row_bytes: float


def measure(rows: int, runs: int) -> Measured:
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
            started = time.perf_counter()
            batch.run(
                [f"--input={lines}", f"--model={place / 'model'}", f"--output={output}"]
            ).wait_until_finish()
            rates.append(rows / (time.perf_counter() - started))
        scores = pa.concat_tables(pq.read_table(file) for file in output.glob("scores-*.parquet"))
        return Measured(
            statistics.median(rates), lines.stat().st_size / rows, scores.nbytes / scores.num_rows
        )


def worker_hour(streaming: bool) -> float:
    """Dollars of one worker for an hour, Streaming Engine's work apart."""
    cpu = PRICES["streaming vCPU hour" if streaming else "batch vCPU hour"] * VCPUS
    disk = (STREAM_DISK_GB if streaming else BATCH_DISK_GB) * PRICES["batch disk GB hour"]
    return cpu + MEMORY_GB * PRICES["memory GB hour"] + disk


def per_million(found: Measured, efficiency: float, scu: float) -> dict[str, float]:
    """Dollars for a million transactions, by what they are spent on; `scu` is compute unit hours for them."""
    hours = 1e6 / (found.rate * efficiency * VCPUS) / 3600
    message = found.message_bytes + 60  # Pub/Sub counts id, time and attributes too
    return {
        "batch: workers": hours * worker_hour(streaming=False),
        "streaming: workers, busy": hours * worker_hour(streaming=True),
        "streaming: Streaming Engine, compute units": scu * PRICES["Streaming Engine compute unit hour"],
        "streaming: Pub/Sub, published and delivered": 2e6 * message / 1024**4 * PRICES["Pub/Sub TiB"],
        "streaming: Pub/Sub, kept by the topic for a day": 1e6
        * message
        / GIB
        * RETENTION_MONTHS
        * PRICES["Pub/Sub topic retention GiB month"],
        "BigQuery, rows written": 1e6 * found.row_bytes / GIB * PRICES["Storage Write API GiB"],
        "BigQuery, rows kept for a month": 1e6 * found.row_bytes / GIB * PRICES["BigQuery storage GiB month"],
    }


def idle_month(scu: float) -> dict[str, float]:
    """Dollars a month for what stands there while nothing is published; `scu` is compute units an hour."""
    units = HOURS_A_MONTH * scu * PRICES["Streaming Engine compute unit hour"]
    return {
        "a streaming job with one worker": HOURS_A_MONTH * worker_hour(streaming=True),
        "its Streaming Engine, compute units": units,
        "no job: topics, subscriptions, dataset, empty": 0.0,
        "no job: bucket with model and specs, 1 GiB": PRICES["Cloud Storage GiB month"],
        "no job: one image, 1.5 GiB": 1.5 * PRICES["Artifact Registry GiB month"],
    }


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--efficiency", type=float, default=0.33, help="default: %(default)s")
    parser.add_argument(
        "--scu-million",
        type=float,
        default=1.0,
        help="assumed compute unit hours of Streaming Engine a million messages (default: %(default)s)",
    )
    parser.add_argument(
        "--scu-idle",
        type=float,
        default=0.1,
        help="assumed compute units an hour while nothing is published (default: %(default)s)",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args(argv)
    found = measure(args.rows, args.runs)
    million = per_million(found, args.efficiency, args.scu_million)
    month = idle_month(args.scu_idle)
    if args.format == "json":
        assumed = {name: getattr(args, name) for name in ("efficiency", "scu_million", "scu_idle")}
        told = {
            "measured": vars(found),
            "assumed": assumed,
            "per_million": million,
            "idle_month": month,
            "prices": PRICES_OF,
        }
        print(json.dumps(told, indent=1))
        return
    print(
        f"Measured: {found.rate:,.0f} transactions/s a core, {found.message_bytes:.0f} bytes a message, "
        f"{found.row_bytes:.0f} bytes a row"
    )
    print(f"Assumed:  a Dataflow core does {args.efficiency:.0%} of that; n2-standard-2 workers")
    print(
        f"          Streaming Engine takes {args.scu_million:g} compute unit hours a million messages, "
        f"{args.scu_idle:g} an hour while idle"
    )
    print(f"Prices:   {PRICES_OF}\n")
    for title, costs in (("A million transactions", million), ("A month without any", month)):
        print(title)
        for name, dollars in costs.items():
            print(f"  {name.ljust(48)} {dollars:9.4f} $")


if __name__ == "__main__":
    main()
