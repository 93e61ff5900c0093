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

from features import arrow, roles
from features.declaration import Feature, FeatureSpec
from features.kinds import MEDIAN, OWN
from features.learnt import NOTHING, Encoded, Learnt, Rarity
from features.rows import EXPECTED, LARGEST_WHOLE, expected_of, is_missing
from features.times import around, is_pattern, parse_time, time_text
from features.values import BLANKS, FALSE_WORDS, TRUE_WORDS, shown

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
Columns = Mapping[str, pa.Array]
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
        self._histories = frozenset(feature.name for feature in spec.history)
        self._encoders = [
            (feature.source, _ENCODERS[feature.rules.value](feature, spec, learnt))
            for feature in spec.features
        ]

    def encode(self, source: Columns) -> Encoded:
        """Encodes columns of equal length, by the names of `FeatureSpec.fields`.

        Where the column of a history feature is not there, its input is NaN, for the history to fill.

        Raises:
          ColumnError: a column has a type that its feature cannot use.
        """
        arrays = {
            name: one_column(source[name])
            for name in self._spec.fields
            if name in source or name not in self._histories
        }
        n = len(next(iter(arrays.values() if arrays else source.values())))
        matrix = np.empty((n, self._width), np.float32)
        reasons: dict[int, str] = {}
        at = 0
        with np.errstate(over="ignore", invalid="ignore"):
            for field, encode in self._encoders:
                if field not in arrays:
                    matrix[:, at] = np.nan
                    at += 1
                    continue
                inputs, bad, expected = encode(arrays[field])
                for values in inputs:
                    matrix[:, at] = values
                    at += 1
                if bad.any():
                    for row in np.flatnonzero(bad).tolist():
                        value = arrow.python_value(arrays[field][row])
                        value = None if is_missing(value) else value
                        reasons.setdefault(row, f"{field}: expected {expected}, got {shown(value)}")
        if reasons:
            matrix[list(reasons)] = np.nan
        return Encoded(matrix, reasons)


def field_columns(table: pa.Table | pa.RecordBatch, fields: tuple[str, ...]) -> dict[str, pa.Array]:
    """Takes the columns of fields out of a table: a column of that name, or one within structs.

    Raises:
      ColumnError: a column is not there.
    """
    return {field: required_column(table, field) for field in fields}


def required_column(table: pa.Table | pa.RecordBatch, field: str) -> pa.Array:
    """Returns the column of a field.

    Raises:
      ColumnError: it is not there.
    """
    column = find_column(table, field)
    if column is None:
        names = table.schema.names
        some = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
        raise ColumnError(
            f"The source has no column {field!r}, which the model's feature spec names; it has {some}"
        )
    return column


def find_column(table: pa.Table | pa.RecordBatch, field: str, is_role: bool = False) -> pa.Array | None:
    """Returns the column of a field; None where it is not there.

    Args:
      table: the columns.
      field: its name, dotted where it is nested.
      is_role: an id, account or time, of which an empty text is a wrong value; see `one_column`.

    Raises:
      ColumnError: it is there more than once.
    """
    column = column_as_is(table, field)
    return None if column is None else one_column(column, is_role)


def column_as_is(table: pa.Table | pa.RecordBatch, field: str) -> pa.Array | None:
    """Returns the column of a field in the source's own type; None where it is not there.

    Raises:
      ColumnError: it is there more than once.
    """
    names = table.schema.names
    try:
        whole = roles.find_column(names, field)
        outer, *rest = field.split(".")
        first = roles.find_column(names, outer) if whole is None else whole
    except ValueError as error:
        raise ColumnError(str(error)) from error
    if first is None:
        return None
    if names.count(first) > 1:
        raise ColumnError(f"Column {first!r} is there {names.count(first)} times; keep one of them")
    column = table.column(first)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if whole is not None:
        return column
    column = one_column(column)
    for key in rest:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(key) < 0:
            return None
        # Unlike `field`, `struct_field` gives null where the struct itself is null.
        column = pc.struct_field(column, key)
    return column


def _is_plain(texts: pa.Array) -> bool:
    """Tells whether a dictionary has texts and nothing else that a value may be: no empty ones, nor bytes."""
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        return False
    return arrow.is_utf8(texts) and not pc.any(pc.equal(pc.binary_length(texts), 0)).as_py()


_Encode = Callable[[pa.Array], "tuple[tuple[npt.NDArray[Any], ...], Bad, str]"]


def _number(feature: Feature, spec: FeatureSpec, learnt: Learnt) -> _Encode:
    default, expected = _default(feature, learnt), expected_of(feature)

    def encode(column: pa.Array) -> tuple[tuple[Matrix], Bad, str]:
        values, bad = numbers(arrow.plain(column), feature.source)
        if default is not None:
            values = np.where(np.isnan(values), default, values)
        return (values,), bad | ~np.isfinite(values.astype(np.float32)), expected

    return encode


def _boolean(feature: Feature, spec: FeatureSpec, learnt: Learnt) -> _Encode:
    default = _default(feature, learnt)

    def encode(column: pa.Array) -> tuple[tuple[Matrix], Bad, str]:
        values, bad = booleans(arrow.plain(column), feature.source)
        if default is not None:
            values = np.where(np.isnan(values), default, values)
        return (values,), bad | np.isnan(values), EXPECTED["boolean"]

    return encode


def _category(feature: Feature, spec: FeatureSpec, learnt: Learnt) -> _Encode:
    lookup = _Lookup(learnt.categories[feature.name])
    refuses = feature.missing != OWN

    def encode(column: pa.Array) -> tuple[tuple[Matrix], Bad, str]:
        texts, bad = category_texts(column, feature.source)
        if refuses and texts.null_count:
            bad = bad | texts.is_null().to_numpy(zero_copy_only=False)
        return (lookup(texts),), bad, EXPECTED["category"]

    return encode


def _time(feature: Feature, spec: FeatureSpec, learnt: Learnt) -> _Encode:
    form = spec.roles.time_format

    def encode(column: pa.Array) -> tuple[tuple[Matrix, Matrix], Bad, str]:
        moments, bad = timestamps(column, form, feature.source)
        bad = bad | moments.is_null().to_numpy(zero_copy_only=False)
        micros = pc.fill_null(moments.cast(pa.int64()), 0).to_numpy()
        return around(feature.kind, micros, feature.timezone), bad, time_text(form)

    return encode


_ENCODERS: Final = {"number": _number, "boolean": _boolean, "category": _category, "time": _time}


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

    def __call__(self, texts: pa.Array) -> Matrix:
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


def numbers(column: pa.Array, name: str, expected: str = "a number") -> tuple[Matrix, Bad]:
    """Returns the values of a column as float64, NaN for null, and which are texts that hold no number.

    Raises:
      ColumnError: the column has neither numbers nor texts.
    """
    try:
        values = arrow.numbers(column, name).astype(np.float64, copy=False)
    except arrow.ColumnTypeError as error:
        raise ColumnError(f"Column {name!r} is {column.type}, not {expected}") from error
    bad = np.zeros(len(values), bool)
    if arrow.is_text(column.type):
        bad = np.isnan(values) & column.is_valid().to_numpy(zero_copy_only=False)
    return values, bad


def booleans(column: pa.Array, name: str) -> tuple[Matrix, Bad]:
    """Returns the values of a column as 0, 1, and NaN for null; and which are neither true nor false.

    Raises:
      ColumnError: the column has neither booleans, numbers nor texts.
    """
    if pa.types.is_boolean(column.type):
        return numbers(column.cast(pa.uint8()), name)
    if arrow.is_text(column.type):
        lower = pc.utf8_lower(pc.utf8_trim(arrow.decoded(column).column, BLANKS))
        words = pc.index_in(lower, value_set=_BOOLEANS).cast(pa.float64())
        values = words.to_numpy(zero_copy_only=False)
        values = np.where(np.isnan(values), values, values < len(TRUE_WORDS))
        return values, np.isnan(values) & column.is_valid().to_numpy(zero_copy_only=False)
    values, _ = numbers(column, name, EXPECTED["boolean"])
    return values, ~((values == 0) | (values == 1) | np.isnan(values))


_BOOLEANS: Final = pa.array([*TRUE_WORDS, *FALSE_WORDS])


def category_texts(column: pa.Array, name: str) -> tuple[pa.Array, Bad]:
    """Returns a category's values as texts or a dictionary of texts, and which are neither text nor whole.

    Raises:
      ColumnError: the column has neither texts nor numbers.
    """
    kind = column.type
    bad = np.zeros(len(column), bool)
    if pa.types.is_dictionary(kind):
        texts, bad_texts = category_texts(one_column(column.dictionary), name)
        if bad_texts.any() or texts.null_count:
            return category_texts(one_column(column.dictionary_decode()), name)
        return pa.DictionaryArray.from_arrays(column.indices, texts), bad
    column = arrow.plain(column)
    kind = column.type
    if pa.types.is_floating(kind):
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        is_whole = (np.abs(values) < LARGEST_WHOLE) & (values == np.floor(values))
        whole = pa.array(np.where(is_whole, values, 0).astype(np.int64), mask=~is_whole)
        return whole.cast(pa.string()), ~is_whole & ~np.isnan(values)
    if arrow.is_text(kind):
        texts, reasons = arrow.decoded(column)
        bad[list(reasons)] = True
        return texts, bad
    if not any(is_kind(kind) for is_kind in _PLAIN):
        raise ColumnError(f"Column {name!r} is {kind}, not {EXPECTED['category']}")
    return column.cast(pa.string()), bad


_PLAIN: Final = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)


def timestamps(column: pa.Array, form: str, name: str) -> tuple[pa.Array, Bad]:
    """Returns times in microseconds, UTC, and which values are no times. A time without a zone is UTC.

    Args:
      column: timestamps or dates; otherwise texts or numbers.
      form: one of TIME_FORMATS or a pattern, of texts and numbers.
      name: of the column.

    Raises:
      ColumnError: the column cannot hold times.
    """
    column = arrow.plain(column)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    bad = np.zeros(len(column), bool)
    if form != "any" and not (pa.types.is_timestamp(column.type) or pa.types.is_null(column.type)):
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        is_written = form == "rfc3339" or is_pattern(form)
        if not (arrow.is_text(column.type) if is_written else is_number):
            raise ColumnError(f"Column {name!r} is {column.type}, neither a timestamp nor {time_text(form)}")
        micros: list[int | None] = []
        for i, value in enumerate(column.to_pylist()):
            try:
                micros.append(None if value is None or value != value else parse_time(value, form))
            except ValueError:
                micros.append(None)
                bad[i] = True
        return pa.array(micros, pa.int64()).cast(TIMESTAMP), bad
    try:
        read = arrow.event_times(column, name)
    except arrow.ColumnTypeError as error:
        raise ColumnError(str(error)) from error
    bad[list(read.reasons)] = True
    return read.column, bad


def one_column(column: pa.Array | pa.ChunkedArray, is_role: bool = False) -> pa.Array:
    """Returns a column as one array of a plain type or a dictionary, in which an empty text is null.

    That of a role keeps it: as in a message, it is no id, account or time, and not a missing one.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    # Categories are encoded by their dictionary.
    if not (pa.types.is_dictionary(column.type) and _is_plain(column.dictionary)):
        column = arrow.plain(column)
    if is_role or not arrow.is_text(column.type):
        return column
    is_empty = pc.equal(pc.binary_length(column), 0)
    return pc.if_else(is_empty, pa.scalar(None, column.type), column) if pc.any(is_empty).as_py() else column
