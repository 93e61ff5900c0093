"""Speed of the servers: requests and rows per second, latency, bytes of an answer.

Example:
  python -m benchmarks.serving --runs 5 --seconds 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import orjson
import psutil

from benchmarks.http_load import Load, http_request, measure
from common.command import command
from common.loopback import urlopen
from common.output import progress
from local.process import HOST, ServerProcess, free_port
from model.outputs import ANSWER_FIELDS, DEFAULT_FIELDS
from model.serving.torchserve import process as torchserve_process
from model.serving.torchserve.config import profile_path
from tests.model.serving.artifacts import build_artifact, transactions
from tests.model.serving.servers import torchserve_server

FULL = list(ANSWER_FIELDS[:14])


@dataclass(frozen=True)
class Case:
    """One line of the table: a server, a request size, and what is asked for."""

    server: str
    instances: int
    answer: str
    connections: int


@dataclass(frozen=True)
class Result:
    """Medians over the runs of one case."""

    server: str
    instances: int
    answer: str
    connections: int
    requests_per_second: float
    rows_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    answer_bytes: int


@dataclass(frozen=True)
class Target:
    """A running server: where predictions go and what they need."""

    port: int
    path: str = "/predict"
    headers: dict[str, str] = field(default_factory=dict)


ECHO = "bare uvicorn"
CONTAINER = "custom container"
PYDANTIC = "pydantic models"
TORCHSERVE = "TorchServe"
ENVELOPE = "TorchServe, json envelope"
CASES = (
    *(Case(ECHO, n, "echo", 1) for n in (1, 128)),
    *(Case(CONTAINER, 1, "compact", connections) for connections in (1, 4)),
    *(Case(CONTAINER, 128, "compact", connections) for connections in (1, 4)),
    Case(CONTAINER, 1, "full", 1),
    Case(CONTAINER, 128, "full", 1),
    Case(PYDANTIC, 1, "full", 1),
    Case(PYDANTIC, 128, "full", 1),
    *(Case(TORCHSERVE, n, answer, 1) for n in (1, 128) for answer in ("compact", "full")),
    Case(TORCHSERVE, 128, "compact", 4),
    Case(ENVELOPE, 1, "full", 1),
    Case(ENVELOPE, 128, "full", 1),
)
SERVERS = (ECHO, CONTAINER, PYDANTIC, TORCHSERVE, ENVELOPE)
_TORCHSERVE_PATH = "/predictions/pytorch_autoencoder"


@contextmanager
def _process(name: str, module: str, *flags: str) -> Iterator[Target]:
    port = free_port()

    def ready() -> bool:
        try:
            return bool(urlopen(f"http://{HOST}:{port}/health", timeout=5).status == 200)
        except OSError:
            return False

    process = ServerProcess(name, [sys.executable, "-m", module, "--port", str(port), *flags])
    process.start()
    try:
        process.wait_until(ready, 90)
        yield Target(port)
    finally:
        process.stop()


@contextmanager
def _torchserve(model: str, content_type: str, properties: str = "") -> Iterator[Target]:
    missing = torchserve_process.missing_software()
    if missing:
        raise SystemExit(f"{missing}\nor leave it out: --servers {CONTAINER!r} {PYDANTIC!r}")
    with TemporaryDirectory() as directory:
        config = Path(directory) / "benchmark.properties"
        config.write_text(profile_path("local").read_text() + properties)
        with torchserve_server(model, "--config", str(config)) as served:
            headers = {**served.server.headers("inference"), "Content-Type": content_type}
            yield Target(urlsplit(served.server.inference).port or 0, _TORCHSERVE_PATH, headers)


def serve(name: str, model: str) -> AbstractContextManager[Target]:
    """Runs the named server with one worker and the artifact `model`."""
    if name == CONTAINER:
        return _process(name, "model.serving.app", "--model", model, "--workers", "1")
    if name == ECHO:
        return _process(name, "benchmarks.serving_echo")
    if name == PYDANTIC:
        return _process(name, "benchmarks.serving_pydantic", "--model", model)
    if name == TORCHSERVE:
        return _torchserve(model, "application/octet-stream")
    return _torchserve(model, "application/json", "service_envelope=json\n")


def _body(case: Case) -> bytes:
    body: dict[str, object] = {"instances": transactions(case.instances)}
    if case.server not in (ECHO, PYDANTIC, ENVELOPE):
        body["parameters"] = {"fields": FULL if case.answer == "full" else list(DEFAULT_FIELDS)}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _cpu_seconds() -> float:
    """The CPU time of the server's processes: one server runs at a time."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _summary(case: Case, loads: Sequence[Load], cpu_ms: Sequence[float]) -> Result:
    def median(name: str) -> float:
        return statistics.median(getattr(load, name) for load in loads)

    rate = median("requests_per_second")
    return Result(
        **asdict(case),
        requests_per_second=round(rate, 1),
        rows_per_second=round(rate * case.instances),
        p50_ms=round(median("p50_ms"), 2),
        p99_ms=round(median("p99_ms"), 2),
        cpu_ms=round(statistics.median(cpu_ms), 3),
        answer_bytes=loads[0].answer_bytes,
    )


def run(runs: int, seconds: float, names: Sequence[str]) -> list[Result]:
    """Measures the cases of the named servers, each server alone on the machine."""
    results = []
    cases = [case for case in CASES if case.server in names]
    with TemporaryDirectory() as directory, progress(len(cases) * runs, "runs") as advance:
        model = build_artifact(Path(directory) / "model").uri
        for name in dict.fromkeys(case.server for case in cases):
            with serve(name, model) as target:
                for case in (case for case in cases if case.server == name):
                    request = http_request(target.path, _body(case), target.headers)
                    measure(target.port, request, case.connections, 0.5)
                    loads, cpu_ms = [], []
                    for _ in range(runs):
                        before = _cpu_seconds()
                        loads.append(measure(target.port, request, case.connections, seconds))
                        cpu_ms.append((_cpu_seconds() - before) / loads[-1].requests * 1000)
                        advance(1)
                    results.append(_summary(case, loads, cpu_ms))
    return results


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table, and the ratios to the slow way of writing the same server."""
    lines = [
        "| server | instances | answer | connections | requests/s | rows/s | "
        "p50 ms | p99 ms | CPU ms | bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.server} | {r.instances} | {r.answer} | {r.connections} | {r.requests_per_second:,.0f} "
        f"| {r.rows_per_second:,.0f} | {r.p50_ms:.2f} | {r.p99_ms:.2f} | {r.cpu_ms:.3f} "
        f"| {r.answer_bytes:,} |"
        for r in results
    ]
    rates = {(r.server, r.instances, r.answer): r for r in results if r.connections == 1}
    for n in (1, 128):
        ours, full = rates.get((CONTAINER, n, "compact")), rates.get((CONTAINER, n, "full"))
        slow = rates.get((PYDANTIC, n, "full"))
        if ours and (echo := rates.get((ECHO, n, "echo"))):
            ratio = ours.cpu_ms / echo.cpu_ms
            lines.append(f"\n{n} instance(s): {ratio:.1f} times the CPU of a server that only echoes")
        if ours and full and slow:
            compact, same = (r.requests_per_second / slow.requests_per_second for r in (ours, full))
            lines.append(
                f"\n{n} instance(s): {same:.1f} times the requests of pydantic models for the same answer, "
                f"{compact:.1f} times for the compact one"
            )
        if ours and full:
            ratio = full.answer_bytes / ours.answer_bytes
            lines.append(
                f"\n{n} instance(s): the full answer has {ratio:.1f} times the bytes of the compact one"
            )
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m benchmarks.serving`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Measure the servers on this machine, with one worker each.",
        epilog="Example: python -m benchmarks.serving --runs 5 --seconds 2",
    )
    parser.add_argument("--runs", type=int, default=5, help="runs a case; medians are shown (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a run (default: 2)")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--format", choices=("text", "json"), default="text")
    args = parser.parse_args(argv)
    results = run(args.runs, args.seconds, args.servers)
    if args.format == "json":
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
