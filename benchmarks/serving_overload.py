"""The custom container under more than it can do: with its limit of the wait, and without.

Each of many connections sends its next request as soon as it has the answer, or 1 s after a refusal.

Example:
  python -m benchmarks.serving_overload --seconds 5
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import orjson

from benchmarks.http_load import Load, http_request, measure
from common.command import command
from tests.model.serving.artifacts import build_artifact, transactions
from tests.model.serving.servers import container

WITHOUT = 3_600_000
"""Milliseconds that no request waits."""


def run(model: str, millis: int, connections: int, rows: int, seconds: float) -> Load:
    """Measures one server with this limit of the wait, and one worker."""
    body = orjson.dumps({"instances": transactions(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)
    request = http_request("/predict", body)
    with container(model, "--max_wait_millis", str(millis)) as served:
        port = urlsplit(served.url).port or 0
        measure(port, request, 1, 0.5)
        return measure(port, request, connections, seconds, takes_refusals=True)


def table(loads: Sequence[tuple[str, int, Load]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| limit of the wait | connections | answered/s | p50 ms | p99 ms | refused |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {limit} | {connections} | {load.requests_per_second:,.0f} | {load.p50_ms:,.0f} "
        f"| {load.p99_ms:,.0f} | {load.refused / (load.requests + load.refused):.0%} |"
        for limit, connections, load in loads
    ]
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m benchmarks.serving_overload`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_overload",
        description="Measure the custom container under more than it can do.",
    )
    parser.add_argument(
        "--connections", type=int, nargs="+", default=[16, 256, 1000], help="at the same time"
    )
    parser.add_argument("--rows", type=int, default=128, help="instances of a request (default: 128)")
    parser.add_argument("--millis", type=int, default=100, help="limit of the wait (default: 100)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a run (default: 5)")
    args = parser.parse_args(argv)
    loads = []
    with TemporaryDirectory() as directory:
        model = build_artifact(Path(directory) / "model").uri
        for limit, millis in (("none", WITHOUT), (f"{args.millis} ms", args.millis)):
            for connections in args.connections:
                load = run(model, millis, connections, args.rows, args.seconds)
                loads.append((limit, connections, load))
    print(table(loads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
