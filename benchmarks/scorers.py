"""Rows a second of every way to score a record batch: in the worker, by the container, by TorchServe.

Example:
  python -m benchmarks.scorers --runs 5 --rows 1000
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import requests

from benchmarks.serving import CONTAINER, TORCHSERVE, Target, serve
from common.command import command
from common.output import track
from model.artifact import Artifact
from tests.model.serving.artifacts import build_artifact, transactions
from transforms.remote import Limits, RemoteHandler
from transforms.remote_http import Connection, HttpConnection
from transforms.schema import CARRIED_FIELDS, TRANSACTIONS
from transforms.score import PytorchHandler

IN_WORKER = "in the worker"


@dataclass(frozen=True)
class Result:
    """Medians over the runs of one scorer."""

    scorer: str
    detail: str
    rows: int
    rows_per_second: float
    ms_per_batch: float


@dataclass
class _UrlHandler(RemoteHandler):
    """The remote scorer with the address of a server on this machine."""

    url: str = ""
    headers: dict[str, str] | None = None

    def connect(self) -> Connection:
        return HttpConnection(
            self.url, requests.Session(), self.limits.in_flight, self.limits.timeout, self.headers
        )


def _batch(features: np.ndarray) -> pa.RecordBatch:
    n = len(features)
    time_type = TRANSACTIONS.field("event_time").type
    columns = [
        pa.array([f"t-{i}" for i in range(n)]),
        pa.nulls(n, pa.string()),
        pa.array([dt.datetime(2026, 3, 1, tzinfo=dt.UTC)] * n, time_type),
        pa.repeat(False, n),
        pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1]),
        *(pa.nulls(n, field.type) for field in CARRIED_FIELDS),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TRANSACTIONS)


@contextmanager
def _scorer(name: str, found: Artifact, detail: str) -> Iterator[Callable[[pa.RecordBatch], object]]:
    with ExitStack() as stack:
        handler: PytorchHandler | RemoteHandler
        if name == IN_WORKER:
            handler = PytorchHandler(found.uri, detail)  # type: ignore[arg-type]
        else:
            target: Target = stack.enter_context(serve(name, found.uri))
            handler = _UrlHandler(
                dict(found.manifest.thresholds),
                found.manifest.model_version,
                detail,  # type: ignore[arg-type]
                Limits(),
                f"http://127.0.0.1:{target.port}{target.path}",
                target.headers,
            )
        model = handler.load_model()
        yield lambda batch: handler.run_inference(batch, model)  # type: ignore[arg-type]


def run(runs: int, rows: int, repeats: int) -> list[Result]:
    """Measures every scorer in both details, each server alone on the machine, with one worker."""
    batch = _batch(transactions(rows))
    cases = [(name, detail) for name in (IN_WORKER, CONTAINER, TORCHSERVE) for detail in ("compact", "full")]
    results = []
    with TemporaryDirectory() as directory:
        found = build_artifact(Path(directory) / "model")
        for name, detail in track(cases, "cases"):
            with _scorer(name, found, detail) as score:
                for _ in range(3):
                    score(batch)
                seconds = []
                for _ in range(runs):
                    start = time.perf_counter()
                    for _ in range(repeats):
                        score(batch)
                    seconds.append((time.perf_counter() - start) / repeats)
            median = statistics.median(seconds)
            results.append(Result(name, detail, rows, round(rows / median), round(median * 1000, 2)))
    return results


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m benchmarks.scorers`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scorers",
        description="Measure the scorers of the pipelines on this machine.",
        epilog="Example: python -m benchmarks.scorers --runs 5 --rows 1000",
    )
    parser.add_argument("--runs", type=int, default=5, help="runs a case; medians are shown (default: 5)")
    parser.add_argument("--rows", type=int, default=1000, help="rows of a batch (default: 1000)")
    parser.add_argument("--repeats", type=int, default=20, help="batches a run (default: 20)")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    args = parser.parse_args(argv)
    results = run(args.runs, args.rows, args.repeats)
    if args.format == "json":
        print(json.dumps([asdict(result) for result in results], indent=2))
        return 0
    print("| scorer | detail | rows/s | ms a batch | times the worker |\n|---|---|---|---|---|")
    base = {result.detail: result.rows_per_second for result in results if result.scorer == IN_WORKER}
    for r in results:
        share = r.rows_per_second / base[r.detail]
        print(f"| {r.scorer} | {r.detail} | {r.rows_per_second:,.0f} | {r.ms_per_batch:.2f} | {share:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
