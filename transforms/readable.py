"""The readable part of scores: amounts, contributions by feature, and the values that transactions had."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.declaration import Feature, FeatureSpec
from features.kinds import HISTORY
from features.values import shown
from features.words import explain

MAX_CHARACTERS: Final = 100
"""Longer values are cut."""
_SMALL: Final = 1_000
"""A float32 below this is precise to 4 decimals."""
_FEW: Final = 4
"""Rows up to which a Python number for each costs less than the calls of numpy."""
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def by_feature(contributions: npt.NDArray[np.floating], spec: FeatureSpec) -> npt.NDArray[np.floating]:
    """Adds up the contributions of a feature's inputs, such as sine and cosine.

    Args:
      contributions: [n, inputs].
      spec: the features.

    Returns:
      [n, features].
    """
    if len(spec.inputs) == len(spec.names):
        return contributions
    starts = np.searchsorted(spec.groups, np.arange(len(spec.names)))
    return np.add.reduceat(contributions, starts, axis=1)


def amounts(
    transactions: pa.RecordBatch, matrix: npt.NDArray[np.float32] | None, spec: FeatureSpec
) -> pa.Array:
    """Returns the amounts of a TRANSACTIONS batch, float64; null where the spec names none.

    Args:
      transactions: the batch.
      matrix: its features, [n, inputs]; None where the batch has raw values beside them.
      spec: the features.
    """
    name = spec.roles.amount
    if name is None:
        return pa.nulls(transactions.num_rows, pa.float64())
    if matrix is None:
        return _raw(transactions, name)
    return pa.array(_decimal(matrix[:, spec.fields.index(name)]))


def value_texts(
    transactions: pa.RecordBatch,
    matrix: npt.NDArray[np.float32] | None,
    indices: npt.NDArray[np.intp],
    is_shown: npt.NDArray[np.bool_],
    spec: FeatureSpec,
) -> pa.Array:
    """Writes the values that rows had in their top features, row by row, for a reviewer.

    Of a history feature a clause says what the number means.

    Rows that nobody reviews have nulls: a text for each of them would cost as much as their score.

    Args:
      transactions: a TRANSACTIONS batch of n rows.
      matrix: its features, [n, inputs]; None where the batch has raw values beside them.
      indices: positions of features, [n, k].
      is_shown: rows that are above the lowest severity, [n].
      spec: the features.
    """
    n, k = indices.shape
    rows = np.flatnonzero(is_shown)
    if not len(rows):
        return pa.nulls(n * k, pa.string())
    if matrix is None:
        some = transactions.select(["event_time", "inputs"]).take(pa.array(rows))
        texts = _texts(some, indices[rows], spec)
    else:
        texts = _numbers(matrix[rows], indices[rows])
    # Texts between nulls, laid out as Arrow has them: to gather them by number would cost more than to score.
    written = np.zeros((n, k), bool)
    written[rows] = True
    encoded = [text.encode() for text in texts]
    lengths = np.zeros((n, k), np.int32)
    lengths[rows] = np.array([len(text) for text in encoded], np.int32).reshape(-1, k)
    offsets = np.zeros(n * k + 1, np.int32)
    np.cumsum(lengths.reshape(-1), out=offsets[1:])
    validity = pa.array(written.reshape(-1)).buffers()[1]
    return pa.StringArray.from_buffers(
        n * k, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)), validity
    )


def _numbers(matrix: npt.NDArray[np.float32], indices: npt.NDArray[np.intp]) -> list[str]:
    """The values of numeric features, each in the shortest text that gives the same float32."""
    values = np.take_along_axis(matrix, indices, axis=1).reshape(-1)
    texts: list[str] = pa.array(values).cast(pa.string()).to_pylist()
    return texts


def _texts(transactions: pa.RecordBatch, indices: npt.NDArray[np.intp], spec: FeatureSpec) -> list[str]:
    """The values of features of any kind as texts."""
    columns: dict[int, list[Any]] = {}
    texts = []
    for row, features in enumerate(indices.tolist()):
        for feature in features:
            if feature not in columns:
                one = spec.features[feature]
                is_time = one.rules.value == "time"
                column = transactions.column("event_time") if is_time else _raw(transactions, one.source)
                columns[feature] = column.to_pylist()
            texts.append(_text(spec.features[feature], columns[feature][row]))
    return texts


def _raw(transactions: pa.RecordBatch, field: str) -> pa.Array:
    inputs = transactions.column("inputs")
    return inputs.flatten()[inputs.type.get_field_index(field)]


def _text(feature: Feature, value: Any) -> str:
    """A value as a reviewer reads it."""
    if isinstance(value, dt.datetime):
        local = value.astimezone(ZoneInfo(feature.timezone))
        return local.strftime("%H:%M") if feature.kind == "time_of_day" else _DAYS[local.weekday()]
    if feature.kind == HISTORY:
        # Who reads the table has no spec, and a bare number does not tell whose level it is or how old.
        return _cut(explain(feature, value))
    if value is None:
        return "missing"
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return shown(value)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."


def _decimal(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Float32 as the amount that is meant: 12.34 and not 12.34000015; 4 decimals below 1,000, then 2."""
    if len(values) <= _FEW:
        return np.array([round(value, 4 if abs(value) < _SMALL else 2) for value in values.tolist()])
    wide = values.astype(np.float64)
    decimal = np.rint(wide * 1e4) / 1e4  # as `round` computes it
    is_large = np.abs(wide) >= _SMALL
    if np.count_nonzero(is_large):
        decimal[is_large] = wide[is_large].round(2)
    return decimal
