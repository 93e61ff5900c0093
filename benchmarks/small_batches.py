"""The cost of a batch by its number of rows, step by step, beside the idiomatic way to score one message.

    python -m benchmarks.small_batches                       some minutes
    python -m benchmarks.small_batches --sizes 1 16 --rounds 50

A stream's bundles are small. The steps run as functions, without a runner, on the same Pub/Sub messages:
parse, history (three features of 1,000 accounts in 16 buckets, by a model of its own), score, alert, and
encoding for BigQuery's Storage Write API. Beside them stands what the documentation of RunInference shows,
for one message: json.loads, a tensor, PytorchModelHandlerTensor, json.dumps of all outputs.

Times are CPU time. Sizes and steps take turns, and each cell is the median of the rounds, or with --least the
least of them: other programs of the machine only ever add to a time.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import pyarrow as pa
import torch
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

from benchmarks import history as account_history
from benchmarks.pipeline import all_outputs, source
from common.command import command
from features.history.plan import plans
from model import artifact
from model.train import main as train
from publisher.publish import write_jsonl
from transforms.alert import alerts
from transforms.bigquery.rows import conform, split_requests
from transforms.history import divided, rows_of, with_history, with_values
from transforms.history_state import Bucket, Tables
from transforms.message import MessageRules, parse_messages
from transforms.parse import message_columns
from transforms.rebatch import join
from transforms.schema import SCORES
from transforms.score import PytorchHandler
from transforms.trace import READ_AT, STORED_AT, stamped

SIZES: Final = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384)
STEPS: Final = ("parse", "history", "score", "alert", "sink")
ACCOUNTS: Final = 1_000
BUCKETS: Final = 16
_SPAN_SECONDS: Final = 0.02
"""A cell is called so often in a round that it takes about as long."""


class Steps:
    """The steps of a stream over one batch of messages.

    Args:
      messages: of Pub/Sub.
      model: directory of the artifact.
    """

    def __init__(self, messages: Sequence[PubsubMessage], model: str) -> None:
        self._messages = messages
        self._handler = PytorchHandler(model, profile_every=10)
        self._model = self._handler.load_model()
        self._rules = MessageRules()
        (self._plan,) = plans(account_history.SPEC)
        self._logs = [account_history._Bag() for _ in range(BUCKETS)]
        self._cells = [account_history._Cell() for _ in range(BUCKETS)]
        self._tables, self._bucket = Tables(), Bucket(self._plan, BUCKETS)

    def calls(self, size: int) -> dict[str, Callable[[], Any]]:
        """Returns the steps as calls over so many rows, each with the output of the one before."""
        messages = self._messages[:size]
        transactions = self._parse(messages)
        scores = self._score(transactions)
        (payments,) = account_history.batches(account_history.SPEC, size, size, ACCOUNTS)
        return {
            "parse": lambda: self._parse(messages),
            "history": lambda: self._history(payments),
            "score": lambda: self._score(transactions),
            "alert": lambda: alerts(scores),
            "sink": lambda: self._encode(scores),
        }

    def _parse(self, messages: Sequence[PubsubMessage]) -> pa.RecordBatch:
        parsed = parse_messages(message_columns(messages), self._rules)
        return stamped(parsed.transactions, READ_AT, time.time_ns() // 1000)

    def _score(self, transactions: pa.RecordBatch) -> pa.RecordBatch:
        (scored,) = self._handler.run_inference(transactions, self._model)
        return scored.scores

    def _history(self, transactions: pa.RecordBatch) -> pa.RecordBatch:
        filled = []
        for number, part in divided(self._plan, transactions, BUCKETS):
            log, cell = self._logs[number], self._cells[number]
            updated = self._bucket.update(number, rows_of(self._plan, part), log, cell, self._tables)
            filled.append(with_values(part, updated.values))
        return with_history(self._plan, join(filled))

    def _encode(self, scores: pa.RecordBatch) -> list[bytes]:
        sent = stamped(scores, STORED_AT, time.time_ns() // 1000)
        parts = split_requests(join([conform(sent, SCORES)]))
        return [part.serialize().to_pybytes() for part in parts]


def idiomatic(message: PubsubMessage, model: str) -> Callable[[], str]:
    """Returns the call that scores one message as the documentation of RunInference shows it."""
    path = str(artifact.read(model).model_path)
    handler = PytorchModelHandlerTensor(torch_script_model_path=path, device="cpu")
    loaded = handler.load_model()

    def call() -> str:
        row = json.loads(message.data)
        tensor = torch.tensor(row["features"], dtype=torch.float32)
        (result,) = handler.run_inference([tensor], loaded)
        return json.dumps(all_outputs((row["transaction_id"], result)))

    return call


def measure(calls: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Returns the CPU microseconds of calls, in turns; one list of `rounds` numbers a call."""
    counts = {}
    for key, call in calls.items():
        spans = []
        for _ in range(5):  # the first ones warm up
            began = time.perf_counter()
            call()
            spans.append(time.perf_counter() - began)
        counts[key] = max(1, int(_SPAN_SECONDS / min(spans)))
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            began = time.process_time()
            for _ in range(counts[key]):
                call()
            times[key].append(1e6 * (time.process_time() - began) / counts[key])
    return times


def prepare(directory: Path, rows: int) -> tuple[str, list[PubsubMessage]]:
    """Trains a model and makes messages."""
    model, lines = directory / "model", directory / "lines.jsonl"
    train(["--output", str(model), "--epochs", "5"])
    write_jsonl(lines, source(rows), rows)
    payloads = lines.read_bytes().splitlines()
    return str(model), [PubsubMessage(payload, None, str(i)) for i, payload in enumerate(payloads)]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--least", action="store_true", help="show the least of the rounds, not the median")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        model, messages = prepare(Path(name), max(args.sizes))
        steps = Steps(messages, model)
        calls: dict[Any, Callable[[], Any]] = {"idiomatic": idiomatic(messages[0], model)}
        for size in args.sizes:
            calls |= {(size, step): call for step, call in steps.calls(size).items()}
        times = measure(calls, args.rounds)
    report(times, args.sizes, min if args.least else statistics.median)


def report(
    times: dict[Any, list[float]], sizes: Sequence[int], middle: Callable[[Sequence[float]], float]
) -> None:
    """Prints microseconds by size and step, and what a row costs beside the idiomatic one."""
    plain = middle(times["idiomatic"])
    print(f"\nThe idiomatic way: {plain:,.0f} us a message.\n")
    names = " | ".join(f"{step}, us" for step in (*STEPS, "parse, score, alert"))
    print(f"| rows | {names} | us a row | times the idiomatic |")
    print("|---:|" + "---:|" * (len(STEPS) + 3))
    for size in sizes:
        costs = {step: middle(times[size, step]) for step in STEPS}
        three = sum(costs[step] for step in ("parse", "score", "alert"))
        cells = " | ".join(f"{cost:,.0f}" for cost in (*costs.values(), three))
        print(f"| {size:,} | {cells} | {three / size:,.2f} | {three / size / plain:.3f} |")


if __name__ == "__main__":
    main()
