"""Rows a second of ways to score the same messages on one core, side by side.

    python -m benchmarks.pipeline                 about a quarter of an hour
    python -m benchmarks.pipeline --runs 2 --rows 50000

(a) the idiomatic Beam pipeline: json.loads, a tensor a row, KeyedModelHandler, json.dumps, WriteToText; it
    writes what the model gives, all outputs of it
(a-) the same, keeping anomaly_score and the 4 encoded values alone
(b) this project's batch pipeline, JSON lines to Parquet
(b+) the same with --output_detail=full: all outputs of the model
(bs) (b) with --shadow_model: a second model scores beside the first
(c) this project's batch pipeline, Parquet to Parquet
(d) the same decoding and model in a bare loop, without Beam and without output: the limit of (b)

Every way scores the same stream of synthetic transactions, each on as many rows of it as keep it busy for
some seconds: start-up is part of the time. The ways take turns, so that a noisy machine is noisy for all, and
ratios are taken within a round. (b), (c), (d) are compact, the default: score, severity, encoding, top
features.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

# Before numpy and torch are loaded: one thread each, as one core is what is measured.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

from benchmarks.sampling import shares, timed
from common.command import command
from model import artifact
from model.synthetic.generator import TransactionGenerator
from model.train import main as train
from pipelines import batch
from publisher.files import ParquetFile
from publisher.messages import MessageSource
from publisher.publish import publish, write_jsonl
from transforms.message import MessageColumns, MessageRules, parse_messages
from transforms.score import PytorchHandler
from transforms.scores import assemble_scores, feature_matrix

STEPS = {
    "read and split lines": (
        "transforms/files.py:read",
        "transforms/files.py:_blocks",
        "files.py:_rest_of_line",
    ),
    "decode, validate, to Arrow": ("transforms/message.py:", "transforms/parse.py:"),
    "model": ("transforms/score.py:outputs",),
    "assemble scores": ("transforms/scores.py:", "transforms/score.py:process"),
    "pick alerts": ("transforms/alert.py:",),
    "write Parquet": (
        "transforms/parquet_sink.py:",
        "common/parquet.py:",
        "transforms/sinks.py:",
        "pyarrow/parquet/",
    ),
    "check the options, load the model": (
        "model/artifact.py:",
        "transforms/score.py:load",
        "pipelines/options.py:",
    ),
    "Beam: build, translate, set up, pass on": ("apache_beam/",),
}
"""Steps of (b) and the functions that belong to each, for the profile."""
COPIES = 4, 24
"""Copies of the lines for (b) and (d), of the Parquet file for (c): one alone would measure the start-up."""


def source(rows: int) -> MessageSource:
    """The stream of transactions that all ways score."""
    return MessageSource(TransactionGenerator(seed=1, cycle=rows))


def idiomatic(lines: Path, model: str, output: Path, to_dict: Callable[[tuple], dict]) -> None:
    """(a) as the documentation of RunInference shows it."""
    path = str(artifact.read(model).model_path)
    handler = PytorchModelHandlerTensor(
        torch_script_model_path=path, device="cpu", min_batch_size=256, max_batch_size=1024
    )
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromText(str(lines))
            | beam.Map(json.loads)
            | beam.Map(
                lambda row: (row["transaction_id"], torch.tensor(row["features"], dtype=torch.float32))
            )
            | RunInference(KeyedModelHandler(handler))
            | beam.Map(to_dict)
            | beam.Map(json.dumps)
            | beam.io.WriteToText(str(output / "scores"))
        )


def all_outputs(pair: tuple) -> dict:
    """Makes the answer of the model for a row, as a dict for JSON."""
    return {"transaction_id": pair[0]} | {name: value.tolist() for name, value in pair[1].inference.items()}


def few_outputs(pair: tuple) -> dict:
    """The score and the encoding of a row, as a dict for JSON."""
    inference = pair[1].inference
    names = ("anomaly_score", "encoded")
    return {"transaction_id": pair[0]} | {name: inference[name].tolist() for name in names}


def pipeline(pattern: str, model: str, output: Path, *more: str) -> None:
    """(b) and (c)."""
    argv = [f"--input={pattern}", f"--model={model}", f"--output={output}", "--runner=FnApiRunner", *more]
    batch.run(argv).wait_until_finish()


def bare_loop(files: Sequence[Path], model: str) -> None:
    """(d)."""
    loaded = PytorchHandler(model).load_model().current
    rules = MessageRules()
    for file in files:
        payloads = file.read_bytes().splitlines()
        for start in range(0, len(payloads), 1024):
            parsed = parse_messages(MessageColumns(payloads[start : start + 1024]), rules)
            outputs = loaded.outputs(feature_matrix(parsed.transactions))
            assemble_scores(parsed.transactions, outputs, loaded.rules, 0)


def prepare(directory: Path, rows: int, slow_rows: int) -> tuple[str, list[Path], Path]:
    """The model and the inputs: files of lines, the first lines of them for (a), and Parquet files beside."""
    model = directory / "model"
    train(["--output", str(model), "--epochs", "5"])
    lines, parquet = directory / "lines-0.jsonl", directory / "columns-0.parquet"
    write_jsonl(lines, source(rows), rows)
    few = directory / "few.jsonl"
    with lines.open("rb") as file:
        few.write_bytes(b"".join(file.readline() for _ in range(slow_rows)))
    with ParquetFile(parquet) as sink:
        publish(source(rows), sink, count=rows)
    files = [directory / f"lines-{i}.jsonl" for i in range(COPIES[0])]
    for copy in files[1:]:
        shutil.copy(lines, copy)
    for i in range(1, COPIES[1]):
        shutil.copy(parquet, directory / f"columns-{i}.parquet")
    return str(model), files, few


def check(outputs: dict[str, Path], slow_rows: int) -> None:
    """The ways must agree, or their speeds mean nothing."""
    found = {}
    for way, path in outputs.items():
        if way.startswith("a"):
            rows = [json.loads(line) for file in path.glob("scores*") for line in file.open()]
            found[way] = {row["transaction_id"]: row["anomaly_score"] for row in rows}
        else:
            table = pa.concat_tables([pq.read_table(file) for file in path.glob("scores-*.parquet")])
            columns = (table.column(name).to_pylist() for name in ("transaction_id", "anomaly_score"))
            found[way] = dict(zip(*columns, strict=True))
    assert len(found["a"]) == len(found["a-"]) == slow_rows
    for way in ("b", "b+", "bs", "c"):
        common = [(score, found[way][name]) for name, score in found["a"].items()]
        np.testing.assert_allclose(*zip(*common, strict=True), rtol=1e-4)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=200_000,
        help="rows of a file; (b), (b+), (bs), (d) read 4 copies of it, (c) 24",
    )
    parser.add_argument("--slow-rows", type=int, default=40_000, help="rows of (a)")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model, files, few = prepare(directory, args.rows, args.slow_rows)
        outputs = {way: directory / f"out{way}" for way in ("a", "a-", "b", "b+", "bs", "c")}
        for path in outputs.values():
            path.mkdir()
        many, more = COPIES[0] * args.rows, COPIES[1] * args.rows
        lines, columns = str(directory / "lines-*.jsonl"), str(directory / "columns-*.parquet")
        full = "--output_detail=full"
        ways: dict[str, tuple[int, Callable[[], None]]] = {
            "a": (args.slow_rows, lambda: idiomatic(few, model, outputs["a"], all_outputs)),
            "a-": (args.slow_rows, lambda: idiomatic(few, model, outputs["a-"], few_outputs)),
            "b": (many, lambda: pipeline(lines, model, outputs["b"])),
            "b+": (many, lambda: pipeline(lines, model, outputs["b+"], full)),
            "bs": (many, lambda: pipeline(lines, model, outputs["bs"], f"--shadow_model={model}")),
            "c": (more, lambda: pipeline(columns, model, outputs["c"])),
            "d": (many, lambda: bare_loop(files, model)),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(args.runs + 1):
            for way, (rows, action) in ways.items():
                if way in outputs:
                    shutil.rmtree(outputs[way])
                    outputs[way].mkdir()
                rate = rows / timed(action)
                if number:  # the first round warms up
                    rates[way].append(rate)
                print(f"round {number} ({way}) {rate:12,.0f} rows/s", flush=True)
            if not number:
                check(outputs, args.slow_rows)
        shutil.rmtree(outputs["b"])
        outputs["b"].mkdir()
        report(rates, shares(ways["b"][1], STEPS, "the rest"))


def report(rates: dict[str, list[float]], profile: dict[str, float]) -> None:
    """The medians, the ratios, and where the time goes."""
    median = {way: statistics.median(values) for way, values in rates.items()}

    def times(way: str, other: str) -> float:
        # Within a round, which takes a minute: a machine that others use changes its speed over several.
        return statistics.median(mine / theirs for mine, theirs in zip(rates[way], rates[other], strict=True))

    names = {
        "a": "idiomatic Beam pipeline, JSON lines to text, all outputs",
        "a-": "the same, score and encoding alone",
        "b": "this project, JSON lines to Parquet",
        "b+": "the same, all outputs",
        "bs": "(b) with a shadow model",
        "c": "this project, Parquet to Parquet",
        "d": "bare loop, JSON lines, no output",
    }
    print("\n| way | rows/s, median | lowest | highest | times (a) in the same round, median |")
    print("|---|---:|---:|---:|---:|")
    for way, values in rates.items():
        cells = (median[way], min(values), max(values))
        numbers = " | ".join(f"{cell:,.0f}" for cell in cells)
        print(f"| ({way}) {names[way]} | {numbers} | {times(way, 'a'):.1f} |")
    print(f"\n(b) reaches {100 * times('b', 'd'):.0f} % of (d).")
    print(f"A shadow model makes (b) {100 * (times('b', 'bs') - 1):+.1f} % longer.")
    print("\nWhere the time of (b) goes, by the CPU time of one more run, its stack looked at every 4 ms:\n")
    total = 1e6 / median["b"]
    print("| step | share | us a row, at the median rate |\n|---|---:|---:|")
    for name, share in sorted(profile.items(), key=lambda item: -item[1]):
        print(f"| {name} | {100 * share:.0f} % | {share * total:.2f} |")


if __name__ == "__main__":
    main()
