"""Rows a second of the model in one thread, by engine and batch size; the choice of engine rests on them.

Example:
  python -m benchmarks.inference --batches 1 1024 --engines eager frozen onnxruntime
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common.command import command
from common.output import track
from features.ulb import N_FEATURES
from model import artifact, package, torchscript
from model.network import TransactionAutoencoder
from model.outputs import FIELDS

BATCHES = (1, 32, 256, 1024, 4096)
Runner = Callable[[np.ndarray], object]
"""Takes a float32 matrix [n, 30] and answers score, bottleneck and contributions, or all outputs."""


class _Entry(torch.nn.Module):
    """One method of the network as forward, which is what exporters and compilers take."""

    def __init__(self, network: TransactionAutoencoder, full: bool) -> None:
        super().__init__()
        self.network, self.full = network, full

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.network(x).values()) if self.full else self.network.score(x)


def _of_torch(function: Callable[[torch.Tensor], object]) -> Runner:
    def run(rows: np.ndarray) -> object:
        with torch.inference_mode():
            return function(torch.from_numpy(rows))

    return run


def _script(network: TransactionAutoencoder, full: bool, directory: Path, freeze: bool) -> Runner:
    path = directory / artifact.MODEL_FILE
    torchscript.save(torchscript.trace(network), path)
    module = torchscript.load(path, freeze=freeze)
    return _of_torch(module if full else module.score)


def _eager(network: TransactionAutoencoder, full: bool, directory: Path) -> Runner:
    return _of_torch(_Entry(network, full))


def _traced(network: TransactionAutoencoder, full: bool, directory: Path) -> Runner:
    return _script(network, full, directory, freeze=False)


def _frozen(network: TransactionAutoencoder, full: bool, directory: Path) -> Runner:
    return _script(network, full, directory, freeze=True)


def _compiled(network: TransactionAutoencoder, full: bool, directory: Path) -> Runner:
    return _of_torch(torch.compile(_Entry(network, full), dynamic=True))


def _aot_inductor(network: TransactionAutoencoder, full: bool, directory: Path) -> Runner:
    example = torch.randn(8, N_FEATURES)
    shapes = {"x": {0: torch.export.Dim("n", min=1)}}
    program = torch.export.export(_Entry(network, full).eval(), (example,), dynamic_shapes=shapes)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(directory / "model_aoti.pt2"))
    return _of_torch(torch._inductor.aoti_load_package(path))


def _onnxruntime(network: TransactionAutoencoder, full: bool, directory: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = package.write_onnx(network, directory / package.ONNX_FILE)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = list(FIELDS) if full else ["anomaly_score", "encoded", "contributions"]
    return lambda rows: session.run(names, {package.ONNX_INPUT: rows})


ENGINES = {
    "eager": _eager,
    "traced": _traced,
    "frozen": _frozen,
    "torch.compile": _compiled,
    "AOTInductor": _aot_inductor,
    "onnxruntime": _onnxruntime,
}


def rows_per_second(run: Runner, rows: np.ndarray, seconds: float) -> float:
    """Calls `run` for about so many seconds after a warm-up, and divides."""
    for _ in range(5):
        run(rows)
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        run(rows)
        calls += 1
    return calls * len(rows) / elapsed


def measure(engines: list[str], batches: list[int], repeats: int, seconds: float, full: bool) -> dict:
    """Median rows a second by engine and batch; engines that cannot run here come with their reason."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = TransactionAutoencoder().eval()
    runners, left_out = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for engine in track(engines, "engines"):
            directory = Path(name) / engine
            directory.mkdir()
            try:
                runners[engine] = ENGINES[engine](network, full, directory)
                runners[engine](np.zeros((2, N_FEATURES), np.float32))
            except Exception as e:  # an engine without its compiler must not cost the others
                left_out[engine] = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
                runners.pop(engine, None)
        found: dict[str, dict[int, list[float]]] = {engine: {n: [] for n in batches} for engine in runners}
        # Engines take turns, so that a slow moment of the machine does not fall on one of them.
        for _ in track(range(repeats), "rounds"):
            for n in batches:
                rows = np.random.default_rng(n).normal(size=(n, N_FEATURES)).astype(np.float32)
                for engine, run in runners.items():
                    found[engine][n].append(rows_per_second(run, rows, seconds))
    median = {e: {n: statistics.median(v) for n, v in by.items()} for e, by in found.items()}
    return {
        "outputs": "all 14 fields" if full else "score, encoded, contributions",
        "rows_per_second": median,
        "left_out": left_out,
        "repeats": repeats,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def readable(result: dict) -> str:
    """Markdown: rows a second, and in brackets the ratio to eager mode where that was measured."""
    table = result["rows_per_second"]
    batches = list(next(iter(table.values())))
    lines = [f"| engine | {' | '.join(f'batch {n}' for n in batches)} |", "| --- |" + " --- |" * len(batches)]
    for engine, by in table.items():
        cells = []
        for n in batches:
            ratio = f" ({by[n] / table['eager'][n]:.1f}x)" if "eager" in table else ""
            cells.append(f"{by[n]:,.0f}{ratio}")
        lines.append(f"| {engine} | {' | '.join(cells)} |")
    lines += [f"{engine} left out: {why}" for engine, why in result["left_out"].items()]
    head = f"Rows a second, one thread, {result['outputs']}; medians of {result['repeats']} runs in turns."
    return "\n".join([head, "", *lines])


@command
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the median counts (default 5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a run (default 0.5)")
    parser.add_argument("--full", action="store_true", help="measure all 14 fields, not the cheap path")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args()
    # Compilers and exporters warn of their own internals.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    result = measure(args.engines, args.batches, args.repeats, args.seconds, args.full)
    print(json.dumps(result, indent=2) if args.format == "json" else readable(result))


if __name__ == "__main__":
    main()
