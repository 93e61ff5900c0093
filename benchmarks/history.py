"""The cost of account history: rows a second, bytes of state, memory.

    python -m benchmarks.history                  some minutes
    python -m benchmarks.history --rows 100000 --runs 1 --only pipeline

The step alone, on FnApiRunner: by number of accounts, of buckets, and of rows in a batch, with state (a
stream) and sorted (a batch job), beside a state cell an account. Then JSON lines to Parquet, as (b) of
benchmarks.pipeline, with and without history features.

Rates are rows by second of CPU time of this process, whose work has one thread: other programs of the machine
change them less than rates by the clock. The time of the same pipeline without the step is taken off.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import BytesCoder
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from common.command import command
from features.declaration import FeatureSpec
from features.history.plan import Plan, plans
from features.history.state import Block, from_bytes, to_bytes
from features.history.update import update
from features.learnt import NOTHING
from features.ulb import FEATURES
from model import artifact, train
from model.dataset import Dataset, from_arrow
from model.fitting import TrainingOptions
from transforms.alert import Alert
from transforms.coder import RecordBatchCoder
from transforms.detect import Detect
from transforms.files import ReadJsonLines
from transforms.forms import Encoding, ObjectForm
from transforms.history import History, divided, rows_of, with_history, with_values
from transforms.history_state import Bucket
from transforms.history_tables import Tables
from transforms.message import MessageRules
from transforms.parse import Parse
from transforms.rebatch import join
from transforms.schema import SCORES
from transforms.score import PytorchHandler, Score
from transforms.sinks import WriteFiles

START = 1_750_000_000_000_000
_HISTORY = [
    {"name": "level", "statistic": "deviation", "of": "Amount", "half_life": "30d"},
    {"name": "payments", "statistic": "count", "half_life": "1d"},
    {"name": "idle", "statistic": "since_last"},
]
"""The features of the figures: 4 decayed sums an account."""


def spec(names: Sequence[str] = ("Amount",), more: Sequence[dict[str, str]] = ()) -> FeatureSpec:
    """Makes a spec of numbers and of history by account."""
    history = [{"kind": "history", "by": "account", **one} for one in more]
    return FeatureSpec.from_json({"features": [*({"name": n, "kind": "number"} for n in names), *history]})


SPEC = spec(more=_HISTORY)
WIDE = spec(
    more=[
        *_HISTORY,
        {"name": "new", "statistic": "novelty", "of": "shop"},
        {"name": "share", "statistic": "share", "of": "shop", "half_life": "90d"},
    ]
)
"""The same with a novelty and a share, whose sketches are most of the state."""


def batches(one: FeatureSpec, rows: int, size: int, accounts: int) -> Iterator[pa.RecordBatch]:
    """Makes TRANSACTIONS batches of accounts drawn at random."""
    rng = np.random.default_rng(accounts)
    form = ObjectForm(one, NOTHING)
    for start in range(0, rows, size):
        n = min(size, rows - start)
        times = pa.array(START + (start + np.arange(n)) * 1_000).cast(pa.timestamp("us", tz="UTC"))
        columns = {"Amount": pa.array(rng.lognormal(3, 1, n))}
        if "shop" in form.fields:
            columns["shop"] = pa.array(rng.integers(0, 1_000, n)).cast(pa.string())
        key = pa.array(rng.integers(0, accounts, n)).cast(pa.string())
        values = [
            pa.array(np.arange(start, start + n)).cast(pa.string()),
            key,
            times,
            pa.repeat(False, n),
            *form.encode(columns, times).columns(),
        ]
        trace = [pa.nulls(n, field.type) for field in list(form.schema)[len(values) :]]
        yield pa.RecordBatch.from_arrays([*values, *trace], schema=form.schema)


HELD: dict[str, list[pa.RecordBatch]] = {}
"""The batches of the present figure: a step reads them in this process, and they pass no coder."""
COUNTED: dict[str, int] = {}


class _Source(beam.DoFn):
    def process(self, name: str) -> Iterable[pa.RecordBatch]:
        return HELD[name]


class _Count(beam.DoFn):
    def process(self, batch: pa.RecordBatch) -> None:
        COUNTED["rows"] = COUNTED.get("rows", 0) + batch.num_rows


_CELL: Any = beam.DoFn.StateParam(ReadModifyWriteStateSpec("cell", BytesCoder()))


class _CellFn(beam.DoFn):
    """A state cell an account, the usual way: each row reads and writes that of its account."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def process(self, element: tuple[str, bytes], cell: Any = _CELL) -> Iterable[pa.RecordBatch]:
        """Computes the features of one row."""
        batch = pa.ipc.open_stream(element[1]).read_next_batch()
        state = cell.read()
        block = Block.empty(self._plan) if state is None else from_bytes(self._plan, state, 1)
        _, changed = update(self._plan, block, rows_of(self._plan, batch))
        cell.write(to_bytes(self._plan, changed, 1))
        yield batch


def _single(batch: pa.RecordBatch, plan: Plan) -> Iterator[tuple[str, bytes]]:
    for _, part in divided(plan, batch, 1):
        for i in range(part.num_rows):
            row = part.slice(i, 1)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, row.schema) as writer:
                writer.write_batch(row)
            yield part["account_id"][i].as_py(), sink.getvalue().to_pybytes()


def cpu(step: beam.PTransform | None, rows: int) -> float:
    """Returns the CPU seconds of a pipeline over the held batches, with or without a step."""
    COUNTED.clear()
    began = time.process_time()
    with beam.Pipeline("FnApiRunner") as pipeline:
        elements = pipeline | beam.Create(["x"]) | beam.ParDo(_Source()).with_output_types(pa.RecordBatch)
        elements = elements if step is None else elements | "Step" >> step
        _ = elements | "Count" >> beam.ParDo(_Count())
    assert COUNTED["rows"] == rows
    return time.process_time() - began


def rate(step: Callable[[], beam.PTransform], rows: int, runs: int) -> float:
    """Returns rows by CPU second of a step alone, the median."""
    return statistics.median(rows / max(1e-9, cpu(step(), rows) - cpu(None, rows)) for _ in range(runs))


class _Bag(list[bytes]):
    read, add = list.__iter__, list.append


class _Cell:
    value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


class Sizes(NamedTuple):
    """Bytes of state written a row and held an account, of tables an account, and rows by CPU second."""

    written: float
    held: float
    memory: float
    rate: float


def bare(one: FeatureSpec, buckets: int, size: int, accounts: int, rows: int) -> Sizes:
    """Runs the step in a bare loop, each batch a bundle, which passes the coder as in a shuffle."""
    (plan,) = plans(one)
    logs, cells, tables = [_Bag() for _ in range(buckets)], [_Cell() for _ in range(buckets)], Tables()
    bucket, coder, written, took = Bucket(plan, buckets), RecordBatchCoder(), 0, 0.0
    keys: set[int] = set()
    for batch in batches(one, rows, size, accounts):
        began = time.process_time()
        filled = []
        for number, part in [(n, coder.encode(part)) for n, part in divided(plan, batch, buckets)]:
            decoded = coder.decode(part)
            updated = bucket.update(number, rows_of(plan, decoded), logs[number], cells[number], tables)
            filled.append(with_values(decoded, updated.values))
            written += updated.written
        with_history(plan, join(filled))
        took += time.process_time() - began
        keys.update(pc.unique(batch["account_id"]).to_pylist())
    held = sum(len(entry) for log in logs for entry in log)
    return Sizes(written / rows, held / len(keys), tables.nbytes / len(keys), rows / took)


def model(directory: Path, one: FeatureSpec, table: pa.Table) -> str:
    """Trains a model on some of the rows that it scores: each model then alerts on the same share of them."""
    dataset = from_arrow(table, "", "", one)
    some = np.random.default_rng(0).choice(len(dataset.features), 6_000, replace=False)
    path = str(directory / f"model-{len(one.inputs)}-{one.is_numeric}")
    options = TrainingOptions(epochs=1, split="random")
    train.train(Dataset(dataset.features[some], None, {}, one), path, options, "1", progress=False)
    return path


def pipeline(lines: str, path: str, output: Path, history: History | None, cache_mb: int = 100) -> float:
    """Returns the CPU seconds of JSON lines to Parquet; FnApiRunner caches so much of the state."""
    manifest = artifact.verify(path)
    rules = MessageRules(encoding=Encoding(manifest.spec, manifest.learnt))
    began = time.process_time()
    cache = mock.patch.object(worker_handlers, "STATE_CACHE_SIZE_MB", cache_mb)
    with cache, beam.Pipeline("FnApiRunner") as whole:
        detect = Detect(Parse(rules), Score(PytorchHandler(path)), Alert("medium"), history)
        _ = whole | ReadJsonLines(lines) | detect | WriteFiles(str(output), SCORES, True)
    return time.process_time() - began


def payments(rows: int, accounts: int) -> pa.Table:
    """Makes payments of 30 numbers, a millisecond apart, of accounts drawn at random."""
    rng = np.random.default_rng(0)
    columns = dict(zip(FEATURES, rng.lognormal(1, 0.5, (len(FEATURES), rows)).round(6), strict=True))
    keys = {
        "transaction_id": pa.array(np.arange(rows)).cast(pa.string()),
        "account_id": pa.array(rng.integers(accounts, size=rows)).cast(pa.string()),
        "event_time": pa.array(START + np.arange(rows) * 1_000).cast(pa.timestamp("us", tz="UTC")),
    }
    return pa.table(keys | columns)


def on_top(rows: int, runs: int, accounts: int = 100_000) -> None:
    """Prints the cost of history in the whole pipeline with half the rows: start-up, and by row the rest."""
    rows //= 2
    numbers, own = spec(FEATURES), spec(FEATURES, _HISTORY)
    content = numbers.to_json()
    content["features"][-1]["missing"] = 0.0
    # A worker of Dataflow caches state only where it is asked to; FnApiRunner does, and sizes each value.
    # A model with history reads objects of own features, which is slower than 30 numbers that must be there.
    objects = FeatureSpec.from_json(content)
    table = payments(rows, accounts)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        lines = [orjson.dumps(row) + b"\n" for row in table.to_pylist()]
        sizes = (rows // 5, rows)
        for size in sizes:
            (directory / f"{size}.jsonl").write_bytes(b"".join(lines[:size]))
        models = {one: model(directory, one, table) for one in (numbers, objects, own)}
        ways = {
            "numbers alone, as (b)": (numbers, None, 0),
            "own features, without history": (objects, None, 0),
            "with history, state in 16 buckets": (own, History(own, streaming=True), 0),
            "the same, with the runner's cache of state": (own, History(own, streaming=True), 100),
            "with history, sorted": (own, History(own), 0),
        }
        seconds: dict[tuple[str, int], list[float]] = {}
        for number in range(runs + 1):
            for size in sizes:
                for way, (one, history, cache_mb) in ways.items():
                    lines_of = str(directory / f"{size}.jsonl")
                    took = pipeline(lines_of, models[one], directory / "out", history, cache_mb)
                    if number:  # the first round warms up
                        seconds.setdefault((way, size), []).append(took)
    print(f"\nJSON lines of 30 numbers to Parquet, {sizes[0]:,} and {rows:,} rows, {accounts:,} accounts:\n")
    print("| | start-up, s | a row, microseconds | a row, beside own features | all, beside own features |")
    print("|---|---:|---:|---:|---:|")
    few, many = ({way: statistics.median(seconds[way, size]) for way in ways} for size in sizes)
    by_row = {way: (many[way] - few[way]) / (sizes[1] - sizes[0]) for way in ways}
    base = "own features, without history"
    for way, each in by_row.items():
        more, all_more = each / by_row[base] - 1, many[way] / many[base] - 1
        start = many[way] - each * rows
        print(f"| {way} | {start:.2f} | {1e6 * each:.1f} | {more:+.0%} | {all_more:+.0%} |")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("runner", "loop", "pipeline"), help="one of the figures")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    figures = {"runner": on_runner, "loop": in_loop, "pipeline": on_top}
    for name, figure in figures.items():
        if args.only in (None, name):
            figure(args.rows, args.runs)


def on_runner(rows: int, runs: int) -> None:
    """Prints rates of the step alone."""
    print(
        "On FnApiRunner, batches of 16,384 rows:\n\n| accounts | buckets | state: rows/s | sorted: rows/s |"
    )
    print("|---:|---:|---:|---:|")
    for accounts, buckets in [*((10**k, 16) for k in (3, 4, 5, 6)), (100_000, 1), (100_000, 64)]:
        HELD["x"] = list(batches(SPEC, rows, 16_384, accounts))
        rates = (rate(lambda b=buckets, s=s: History(SPEC, s, b), rows, runs) for s in (True, False))
        cells = " | ".join(f"{each:,.0f}" for each in rates)
        print(f"| {accounts:,} | {buckets} | {cells} |", flush=True)
    HELD["x"] = list(batches(SPEC, rows // 100, 16_384, 100_000))
    (plan,) = plans(SPEC)
    print(f"\nA state cell an account: {rate(lambda: _CellStep(plan), rows // 100, runs):,.0f} rows/s")
    HELD.clear()


def in_loop(rows: int, runs: int) -> None:
    """Prints rates and bytes of the step in a bare loop, of one run."""
    print(
        "\nIn a bare loop, a bundle a batch:\n\n| features | accounts | buckets | rows a batch | rows/s "
        "| written a row | state an account | memory an account |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    settings = [(SPEC, 10**k, 16, 16_384) for k in (3, 4, 5, 6)] + [(WIDE, 100_000, 16, 16_384)]
    settings += [(SPEC, 100_000, buckets, 1_024) for buckets in (1, 16, 64)] + [(SPEC, 100_000, 16, 64)]
    for one, accounts, buckets, size in settings:
        few = max(rows if size > 1_000 else rows // 10, 2 * accounts if size > 10_000 else 0)
        sizes = bare(one, buckets, size, accounts, few)
        cells = " | ".join(f"{each:,.0f} B" for each in sizes[:3])
        names = len(one.history)
        print(f"| {names} | {accounts:,} | {buckets} | {size:,} | {sizes.rate:,.0f} | {cells} |", flush=True)


class _CellStep(beam.PTransform):
    """The state cell an account as a step."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        single = beam.FlatMap(_single, self._plan).with_output_types(tuple[str, bytes])
        return elements | single | beam.ParDo(_CellFn(self._plan)).with_output_types(pa.RecordBatch)


if __name__ == "__main__":
    # By its name: Beam copies what a step of __main__ refers to, HELD among it.
    from benchmarks import history

    history.main()
