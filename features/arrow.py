"""Reads Arrow columns of numbers, ids and times, by the rules of features.values and features.roles."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features import roles
from features.values import NUMBER

EVENT_TIME: Final = pa.timestamp("us", tz="UTC")
_UUID_BYTES: Final = 16
_NUMERIC: Final = frozenset(
    kind.id
    for kind in (
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64()),
    )
)
_PLAIN: Final = _NUMERIC | {EVENT_TIME.id, pa.bool_().id, pa.list_(pa.null()).id}
"""Ids of usual types: one look in a set costs less than the questions of pyarrow.types, column by column."""
_MOST_TICKS: Final = {"s": (2**63 - 1) // 10**6, "ms": (2**63 - 1) // 10**3}
"""By unit, the most of it that microseconds can hold: more would wrap."""
_FAR: Final = "a time that is no time of the calendar"
_NOT_PYTHON: Final = (ValueError, OverflowError, LookupError)
_BYTES: Final = {pa.string().id: pa.binary(), pa.large_string().id: pa.large_binary()}


class ColumnTypeError(ValueError):
    """A column has a type that cannot be used. The text names both."""


class Read(NamedTuple):
    """A column that was read, null where there is nothing; and why a row could not be read, by its number."""

    column: pa.Array
    reasons: dict[int, str]


def plain(column: pa.Array) -> pa.Array:
    """Returns the column in a type that has compute functions: no dictionary, view or extension.

    Texts of which one is not UTF-8 become bytes: who reads Parquet gets what a writer has called texts.
    """
    kind = column.type
    if kind.id in _PLAIN:
        return column
    if kind.id in _BYTES:
        return column if is_utf8(column) else column.view(_BYTES[kind.id])
    if isinstance(kind, pa.BaseExtensionType):
        return plain(column.storage)
    if pa.types.is_dictionary(kind):
        return plain(column.dictionary_decode())
    if kind == pa.string_view():
        return plain(column.cast(pa.string()))
    if kind == pa.binary_view():
        return column.cast(pa.binary())
    if kind == pa.binary(_UUID_BYTES):  # the type of Parquet's UUID where Arrow does not know it as one
        texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    return column


def is_utf8(column: pa.Array) -> bool:
    """Tells whether all texts of a column, nested ones as well, are UTF-8."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def python_values(column: pa.Array) -> list[Any]:
    """Returns the values as Python has them, and as texts those that it cannot have.

    These are times with nanoseconds, or beyond the years 1 to 9999, or in a zone that is not known; and texts
    that are not UTF-8, with `\\xNN` for each such byte.
    """
    try:
        return list(column.to_pylist())
    except _NOT_PYTHON:
        return [python_value(each) for each in column]


def python_value(scalar: pa.Scalar) -> Any:
    """Returns one value as `python_values` does."""
    try:
        return scalar.as_py()
    except _NOT_PYTHON:
        if isinstance(scalar, (pa.DictionaryScalar, pa.ExtensionScalar)):
            return python_value(scalar.value)
        if isinstance(scalar, pa.StructScalar):
            return {name: python_value(item) for name, item in scalar.items()}
        if isinstance(scalar, pa.ListScalar):
            return [python_value(item) for item in scalar.values]
        if hasattr(scalar, "as_buffer"):
            return scalar.as_buffer().to_pybytes().decode(errors="backslashreplace")
        try:
            return str(scalar.cast(pa.string()))
        except pa.ArrowException:  # the zone
            return str(scalar.value)


def is_text(kind: pa.DataType) -> bool:
    """Tells whether a plain column holds texts; bytes count, because some writers store texts so."""
    return any(
        is_kind(kind)
        for is_kind in (
            *(pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary),
            pa.types.is_fixed_size_binary,
        )
    )


def numbers(column: pa.Array, name: str) -> npt.NDArray[Any]:
    """Returns a plain column as numbers; NaN where there is none, or a text that holds none.

    >>> numbers(pa.array(["1.5", "x", None]), "V1").tolist()
    [1.5, nan, nan]

    Raises:
      ColumnTypeError: the column holds neither numbers nor texts.
    """
    kind = column.type
    if kind.id in _NUMERIC:
        pass
    elif pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif pa.types.is_null(kind):
        column = column.cast(pa.float32())
    elif is_text(kind):
        trimmed = pc.ascii_trim_whitespace(decoded(column).column)
        is_number = pc.match_substring_regex(trimmed, f"^({NUMBER})$")
        column = pc.if_else(is_number, trimmed, pa.scalar(None, pa.string())).cast(pa.float64())
    else:
        raise ColumnTypeError(f"Column {name!r} is {kind}, not a number")
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def identifiers(column: pa.Array, name: str) -> Read:
    """Reads a plain column of ids, texts or integers, as texts of 1 to 256 characters.

    A text of another length stays in the column, with its reason.

    Raises:
      ColumnTypeError: the column holds neither.
    """
    kind = column.type
    if is_text(kind):
        texts, reasons = decoded(column)
    elif pa.types.is_integer(kind) or pa.types.is_null(kind):
        texts, reasons = column.cast(pa.string()), {}
    else:
        raise ColumnTypeError(f"Column {name!r} is {kind}, not a string or an integer")
    least, most = pc.min_max(pc.binary_length(texts)).values()
    if least.as_py() is None or (least.as_py() >= 1 and most.as_py() <= roles.MAX_ID_LENGTH):
        return Read(texts, reasons)  # the usual case: bytes are counted faster than characters
    lengths = pc.fill_null(pc.utf8_length(texts), 1).to_numpy(zero_copy_only=False)
    for i in np.flatnonzero((lengths < 1) | (lengths > roles.MAX_ID_LENGTH)).tolist():
        reasons.setdefault(i, f"{lengths[i]} characters, not 1 to {roles.MAX_ID_LENGTH}")
    return Read(texts, reasons)


def event_times(column: pa.Array, name: str) -> Read:
    """Reads a plain column of times: timestamps, UTC where they have no zone; texts; numbers since 1970.

    Nanoseconds are cut. A row that holds no time is null, with its reason.

    Raises:
      ColumnTypeError: the column holds none of these.
    """
    kind = column.type
    if pa.types.is_null(kind):
        return Read(column.cast(EVENT_TIME), {})
    if pa.types.is_timestamp(kind):
        reasons = {}
        if kind.unit in _MOST_TICKS:
            ticks, most = column.cast(pa.int64()), _MOST_TICKS[kind.unit]
            is_far = pc.or_(pc.greater(ticks, most), pc.less(ticks, -most))  # the least has no absolute value
            reasons = {int(i): _FAR for i in np.flatnonzero(pc.fill_null(is_far, False))}
            column = pc.if_else(is_far, None, column) if reasons else column
        if kind.tz is None:
            column = pc.assume_timezone(column, "UTC")
        return Read(pc.cast(column, EVENT_TIME, safe=False), reasons)
    if pa.types.is_int64(kind):
        return Read(_from_epoch(column), {})
    if is_text(kind):
        texts, reasons = decoded(column)
        return _each(texts, roles.event_time, reasons)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        if pa.types.is_floating(kind):
            column = column.cast(pa.float64())
            column = pc.if_else(pc.is_nan(column), None, column)
        return _each(column, roles.event_time, {})
    if pa.types.is_decimal(kind):
        return _each(column.cast(pa.float64()), roles.event_time, {})
    raise ColumnTypeError(f"Column {name!r} is {kind}, not a timestamp, a text or a number since 1970")


def _from_epoch(column: pa.Array) -> pa.Array:
    """Whole numbers as times, by their size: the rule of `roles.event_time`, for all rows at once."""
    values = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    size = np.abs(values.astype(np.float64))
    micros = values // 1000
    for limit, factor in reversed(roles.EPOCH_UNITS):
        micros = np.where(size < limit, values * factor, micros)
    return pa.array(micros, pa.int64(), mask=column.is_null().to_numpy(zero_copy_only=False)).cast(EVENT_TIME)


def decoded(column: pa.Array) -> Read:
    """Returns plain texts, or bytes as texts; null where they are not UTF-8."""
    try:
        return Read(column.cast(pa.string()), {})
    except pa.ArrowInvalid:
        return _each(column, lambda value: None if value is None else value.decode(), {}, pa.string())


def _each(
    column: pa.Array, read: Callable[[Any], Any], reasons: dict[int, str], kind: pa.DataType = EVENT_TIME
) -> Read:
    values: list[Any] = []
    for i, value in enumerate(column.to_pylist()):
        try:
            values.append(read(value))
        except UnicodeDecodeError as error:
            values.append(None)
            reasons[i] = f"not UTF-8 ({error.reason} at byte {error.start})"
        except ValueError as error:
            values.append(None)
            reasons[i] = str(error)
    return Read(pa.array(values, kind), reasons)


def count_missing(column: pa.Array) -> int:
    """Counts the values that are missing: nulls, NaN and empty texts."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    missing: int = column.null_count
    if pa.types.is_floating(column.type):
        missing += pc.sum(pc.is_nan(column)).as_py() or 0
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        missing += pc.sum(pc.equal(column, "")).as_py() or 0
    return missing
