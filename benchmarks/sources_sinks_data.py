"""Rows and steps of `benchmarks.sources_sinks`, in a module of their own so that none is pickled by value."""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

import transforms.coder  # noqa: F401  registers the coder of record batches
from model.outputs import ENCODED_SIZE
from transforms.schema import SCORES, TOP_FEATURES

BATCH_ROWS = 4096
_NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


@functools.cache
def scores(batches: int) -> list[pa.RecordBatch]:
    """`batches` SCORES batches of BATCH_ROWS rows, always the same."""
    return [_scores(i) for i in range(batches)]


def _scores(number: int) -> pa.RecordBatch:
    rng = np.random.default_rng(number)
    n = BATCH_ROWS
    names = pa.array(np.char.add("V", rng.integers(1, 29, TOP_FEATURES * n).astype(str)))
    pairs = pa.StructArray.from_arrays(
        [names, pa.array(rng.normal(size=TOP_FEATURES * n)), pa.nulls(TOP_FEATURES * n, pa.string())],
        ["feature", "contribution", "value"],
    )
    columns = {
        "transaction_id": pa.array([f"transaction-{number * n + i:012d}" for i in range(n)]),
        "account_id": pa.nulls(n, pa.string()),
        "event_time": pa.array([_NOW] * n, pa.timestamp("us", tz="UTC")),
        "event_time_derived": pa.repeat(False, n),
        "anomaly_score": pa.array(rng.gamma(2.0, size=n)),
        "severity": pa.array(["normal"] * n),
        "encoded": _lists(pa.array(rng.normal(size=ENCODED_SIZE * n)), ENCODED_SIZE),
        "top_features": _lists(pairs, TOP_FEATURES),
        "model_version": pa.array(["benchmark"] * n),
        "scored_at": pa.array([_NOW] * n, pa.timestamp("us", tz="UTC")),
    }
    arrays = [columns.get(field.name, pa.nulls(n, field.type)) for field in SCORES]
    return pa.RecordBatch.from_arrays(arrays, schema=SCORES)


def _lists(values: pa.Array, size: int) -> pa.ListArray:
    offsets = pa.array(np.arange(0, len(values) + 1, size, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, values)


def write_lines(path: Path, rows: int) -> None:
    """A file of `rows` JSON messages."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(rows):
            features = np.round(rng.normal(size=30), 6).tolist()
            file.write(json.dumps({"transaction_id": f"transaction-{i:012d}", "features": features}) + "\n")


class Generate(beam.DoFn):
    """A number in, so many batches of scores out."""

    def process(self, batches: int) -> Iterable[pa.RecordBatch]:
        """They were made before the clock started."""
        yield from scores(batches)


class Drop(beam.DoFn):
    """The end of a read."""

    def process(self, element: Any) -> Iterable[None]:
        """Nothing."""
        return ()


def to_table(batch: pa.RecordBatch) -> pa.Table:
    """Makes the input of Beam's own Parquet sink."""
    return pa.Table.from_batches([batch])
