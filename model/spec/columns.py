"""Encodes Arrow columns, all rows at once: for pipelines and training.

`rows` does the same for Python objects, and gives the same numbers and reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model.spec.declaration import Feature, FeatureSpec
from model.spec.kinds import MEDIAN, OWN
from model.spec.learnt import NOTHING, Encoded, Learnt, Rarity
from model.spec.rows import EXPECTED, LARGEST_WHOLE
from model.spec.times import around, parse_time
from model.values import shown

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
Array = pa.Array
Columns = Mapping[str, Array]
Matrix = npt.NDArray[np.float64]
Bad = npt.NDArray[np.bool_]


class ColumnError(ValueError):
    """A source does not have a column, or has it in a type that cannot be used. The text names it."""


class ColumnEncoder:
    """Encodes the columns of a spec's fields.

    >>> spec = FeatureSpec.from_json({"features": [{"name": "amount", "kind": "number"}]})
    >>> encoded = ColumnEncoder(spec).encode({"amount": pa.array([1.5, None])})
    >>> encoded.inputs[0].tolist(), encoded.reasons
    ([1.5], {1: 'amount: expected a finite number within float32, got null'})

    Args:
      spec: the features.
      learnt: from the manifest of the model.

    Raises:
      SpecError: `learnt` lacks a part that `spec` needs.
    """

    def __init__(self, spec: FeatureSpec, learnt: Learnt = NOTHING) -> None:
        learnt.check(spec)
        self._spec = spec
        self._width = len(spec.inputs)
        self._encoders = [
            (feature.source, _ENCODERS[feature.rules.value](feature, spec, learnt))
            for feature in spec.features
        ]

    def encode(self, columns: Columns) -> Encoded:
        """Encodes columns of equal length, by the names of `FeatureSpec.fields`.

        Raises:
          ColumnError: a column has a type that its feature cannot use.
        """
        arrays = {name: _one(columns[name]) for name in self._spec.fields}
        n = len(next(iter(arrays.values())))
        matrix = np.empty((n, self._width), np.float32)
        reasons: dict[int, str] = {}
        at = 0
        with np.errstate(over="ignore", invalid="ignore"):
            for source, encode in self._encoders:
                inputs, bad, expected = encode(arrays[source])
                for values in inputs:
                    matrix[:, at] = values
                    at += 1
                if bad.any():
                    for row in np.flatnonzero(bad).tolist():
                        value = arrays[source][row].as_py()
                        value = None if value != value else value  # NaN is a missing value
                        reasons.setdefault(row, f"{source}: expected {expected}, got {shown(value)}")
        if reasons:
            matrix[list(reasons)] = np.nan
        return Encoded(matrix, reasons)


def field_columns(
    table: pa.Table | pa.RecordBatch, fields: Mapping[str, Any] | tuple[str, ...]
) -> dict[str, Array]:
    """Takes the columns of fields out of a table: a column of that name, or one within structs.

    Raises:
      ColumnError: a column is not there.
    """
    return {field: find_column(table, field, required=True) for field in fields}


def find_column(table: pa.Table | pa.RecordBatch, field: str, required: bool = False) -> Array | None:
    """Returns the column of a field; None where it is not there.

    Raises:
      ColumnError: it is required, and not there.
    """
    names = table.schema.names
    first, *rest = (field,) if field in names else field.split(".")
    if names.count(first) > 1:
        raise ColumnError(f"Column {first!r} is there {names.count(first)} times; keep one of them")
    column = _one(table.column(first)) if first in names else None
    for key in rest:
        is_there = (
            column is not None and pa.types.is_struct(column.type) and column.type.get_field_index(key) >= 0
        )
        # Unlike `field`, `struct_field` gives null where the struct itself is null.
        column = pc.struct_field(column, key) if is_there else None
    if column is None and required:
        some = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
        raise ColumnError(
            f"The source has no column {field!r}, which the model's feature spec names; it has {some}"
        )
    return column


_Encode = Callable[[Array], "tuple[tuple[npt.NDArray[Any], ...], Bad, str]"]


def _number(feature: Feature, spec: FeatureSpec, learnt: Learnt) -> _Encode:
    default = _default(feature, learnt)

    def encode(column: Array) -> tuple[tuple[Matrix], Bad, str]:
        values = numbers(column, feature.source)
        if default is not None:
            values = np.where(np.isnan(values), default, values)
        return (values,), ~np.isfinite(values.astype(np.float32)), EXPECTED["number"]

    return encode


def _boolean(feature: Feature, spec: FeatureSpec, learnt: Learnt) -> _Encode:
    default = _default(feature, learnt)

    def encode(column: Array) -> tuple[tuple[Matrix], Bad, str]:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        values = numbers(column, feature.source, EXPECTED["boolean"])
        bad = ~((values == 0) | (values == 1))
        if default is not None:
            is_missing = np.isnan(values)
            values, bad = np.where(is_missing, default, values), bad & ~is_missing
        return (values,), bad, EXPECTED["boolean"]

    return encode


def _category(feature: Feature, spec: FeatureSpec, learnt: Learnt) -> _Encode:
    lookup = _Lookup(learnt.categories[feature.name])
    refuses = feature.missing != OWN

    def encode(column: Array) -> tuple[tuple[Matrix], Bad, str]:
        texts, bad = category_texts(column, feature.source)
        if refuses and texts.null_count:
            bad = bad | texts.is_null().to_numpy(zero_copy_only=False)
        return (lookup(texts),), bad, EXPECTED["category"]

    return encode


def _time(feature: Feature, spec: FeatureSpec, learnt: Learnt) -> _Encode:
    form = spec.roles.time_format

    def encode(column: Array) -> tuple[tuple[Matrix, Matrix], Bad, str]:
        moments, bad = timestamps(column, form, feature.source)
        bad = bad | moments.is_null().to_numpy(zero_copy_only=False)
        micros = pc.fill_null(moments.cast(pa.int64()), 0).to_numpy()
        return around(feature.kind, micros, feature.timezone), bad, time_text(form)

    return encode


_ENCODERS: Final = {"number": _number, "boolean": _boolean, "category": _category, "time": _time}


def time_text(form: str) -> str:
    """Returns what an event time is expected to be."""
    return "a time as RFC 3339 with an offset" if form == "rfc3339" else f"a number of {form} since 1970"


def _default(feature: Feature, learnt: Learnt) -> float | None:
    filled = learnt.medians[feature.name] if feature.missing == MEDIAN else feature.missing
    return filled if isinstance(filled, float) else None


class _Lookup:
    """Finds the rarities of texts; null is a missing value."""

    def __init__(self, rarity: Rarity) -> None:
        self._values = pa.array(rarity.values, pa.string())
        self._known: dict[str | None, float] = dict(zip(rarity.values, rarity.rarities, strict=True))
        self._known[None] = rarity.missing
        self._rarities = np.array([*rarity.rarities, rarity.other])
        self._missing, self._other = rarity.missing, rarity.other

    def __call__(self, texts: Array) -> Matrix:
        if pa.types.is_dictionary(texts.type):
            rarities = self(texts.dictionary)
            codes = pc.fill_null(texts.indices, 0).to_numpy(zero_copy_only=False)
            found = rarities[codes] if len(rarities) else np.empty(len(texts))
        elif 4 * len(texts) < len(self._values):
            # Arrow would hash all known values for a few.
            return np.array([self._known.get(text, self._other) for text in texts.to_pylist()], np.float64)
        else:
            codes = pc.index_in(texts, value_set=self._values)
            found = self._rarities[pc.fill_null(codes, -1).to_numpy()]
        if texts.null_count:
            found = np.where(texts.is_null().to_numpy(zero_copy_only=False), self._missing, found)
        return found


def numbers(column: Array, name: str, expected: str = "a number") -> Matrix:
    """Returns the values of a column as float64; null becomes NaN.

    Raises:
      ColumnError: the column has no numbers.
    """
    kind = column.type
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise ColumnError(f"Column {name!r} is {kind}, not {expected}")
    return column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)


def category_texts(column: Array, name: str) -> tuple[Array, Bad]:
    """Returns a category's values as texts or a dictionary of texts, and which are neither text nor whole.

    Raises:
      ColumnError: the column has neither texts nor numbers.
    """
    kind = column.type
    good = np.zeros(len(column), bool)
    if pa.types.is_dictionary(kind):
        texts, bad = category_texts(column.dictionary, name)
        if bad.any() or texts.null_count:
            return category_texts(column.dictionary_decode(), name)
        return pa.DictionaryArray.from_arrays(column.indices, texts), good
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        values = column.to_numpy(zero_copy_only=False)
        is_whole = (np.abs(values) < LARGEST_WHOLE) & (values == np.floor(values))
        whole = pa.array(np.where(is_whole, values, 0).astype(np.int64), mask=~is_whole)
        return whole.cast(pa.string()), ~is_whole & ~np.isnan(values)
    if not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    ):
        raise ColumnError(f"Column {name!r} is {kind}, not {EXPECTED['category']}")
    return column.cast(pa.string()), good


def timestamps(column: Array, form: str, name: str) -> tuple[Array, Bad]:
    """Returns times in microseconds, UTC, and which values are no times. A time without a zone is UTC.

    Args:
      column: timestamps or dates; otherwise texts or numbers.
      form: one of TIME_FORMATS, of texts and numbers.
      name: of the column.

    Raises:
      ColumnError: the column cannot hold times.
    """
    kind = column.type
    good = np.zeros(len(column), bool)
    if pa.types.is_null(kind):
        return column.cast(TIMESTAMP), good
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us"))
        kind = column.type
    if pa.types.is_timestamp(kind):
        if kind.tz is None:
            column = pc.assume_timezone(column, "UTC")
        return pc.cast(column, TIMESTAMP, safe=False), good  # nanoseconds are cut
    if pa.types.is_dictionary(kind):
        return timestamps(column.dictionary_decode(), form, name)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (is_text if form == "rfc3339" else is_number):
        raise ColumnError(f"Column {name!r} is {kind}, neither a timestamp nor {time_text(form)}")
    micros: list[int | None] = []
    for i, value in enumerate(column.to_pylist()):
        try:
            micros.append(None if value is None or value != value else parse_time(value, form))
        except ValueError:
            micros.append(None)
            good[i] = True
    return pa.array(micros, pa.int64()).cast(TIMESTAMP), good


def _one(column: pa.Array | pa.ChunkedArray) -> Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
