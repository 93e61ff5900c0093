"""Record batches from a source that is columnar already: BigQuery, Parquet. No Beam here."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from common.limits import MAX_BATCH_BYTES
from model.features import FEATURES, N_FEATURES
from transforms.dead_letter import dead_letters
from transforms.message import MAX_ID_LENGTH, MessageRules, Parsed, event_time_bounds, outside_text
from transforms.schema import ERROR_RECORDS, TRANSACTIONS, empty
from transforms.trace import message_trace, passed_columns

BATCH_ROWS: Final = 16 * 1024
"""Rows in the batches of a columnar source: enough that the cost of a batch at every step vanishes."""

SOURCE_COLUMNS: Final = ("transaction_id", "account_id", "event_time", "features", *FEATURES)
"""The columns that `to_transactions` looks at; a source need not read any other."""

_EVENT_TIME: Final = TRANSACTIONS.field("event_time").type


class SourceColumnsError(ValueError):
    """A source lacks a column, or has one of a type that cannot be used. The text names it."""


def to_transactions(
    batch: pa.RecordBatch, default_event_time: dt.datetime, rules: MessageRules | None = None
) -> Parsed:
    """Validates rows in the ULB layout, all at once.

    - The 30 columns of model.features, numbers; or `features`, a list of 30 numbers. Null, NaN, infinite or
      over the float32 range: a dead letter that names the feature.
    - `transaction_id`, string or integer. Null or absent: derived from features, `event_time` and
      `account_id`, so that reading again gives the same id, and equal rows count as one.
    - `account_id`, string or integer; may be null or absent.
    - `event_time`, timestamp, UTC where it has no zone. Null or absent: `default_event_time`, marked as
      derived. A time further from that than `rules` allow is a dead letter.

    >>> row = {name: [1.0] for name in FEATURES} | {"transaction_id": ["t-1"]}
    >>> parsed = to_transactions(pa.RecordBatch.from_pydict(row), dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
    >>> parsed.transactions.column("transaction_id").to_pylist()
    ['t-1']

    Ids are 1 to 256 characters long, otherwise the row is a dead letter. Other columns are ignored, also the
    label.

    Args:
      batch: the rows.
      default_event_time: timezone-aware. Fix it at launch, so that a repeated bundle gives the same rows.
      rules: whose `max_lead` and `max_age` hold; those of a message when None.

    Returns:
      A TRANSACTIONS batch, and an ERROR_RECORDS batch whose payloads are the rejected rows as JSON. Together
      they hold every row once, in order.

    Raises:
      SourceColumnsError: feature columns are missing, or a column has an impossible type.
    """
    matrix, reasons = _features(batch, np.float32)
    finite = np.isfinite(matrix)
    if not finite.all():
        for row in np.flatnonzero(~finite.all(axis=1)).tolist():
            if row not in reasons:
                reasons[row] = _not_finite(batch, row, int(np.flatnonzero(~finite[row])[0]))
    ids, accounts = _text(batch, "transaction_id"), _text(batch, "account_id")
    for name, column in (("transaction_id", ids), ("account_id", accounts)):
        for i in _wrong_length(column):
            reasons.setdefault(i, f"{name}: {len(column[i].as_py())} characters, not 1 to {MAX_ID_LENGTH}")
    times = _event_times(batch)
    for i, reason in _outside(times, default_event_time, rules or MessageRules()).items():
        reasons.setdefault(i, reason)
    if ids.null_count:
        unnamed = ids.is_null()
        content = _content(batch.filter(unnamed), times.filter(unnamed))
        ids = _fill_ids(ids, content, accounts)
    default = pa.scalar(default_event_time, _EVENT_TIME)
    features = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), N_FEATURES)
    names = rules.pass_through if rules else ()
    passed = passed_columns(batch, names) if names else None
    trace = message_trace(None, None, passed, batch.num_rows)
    transactions = pa.RecordBatch.from_arrays(
        [ids, accounts, pc.fill_null(times, default), times.is_null(), features, *trace], schema=TRANSACTIONS
    )
    if not reasons:
        return Parsed(transactions, empty(ERROR_RECORDS))
    rejected = sorted(reasons)
    keep = np.ones(batch.num_rows, bool)
    keep[rejected] = False
    return Parsed(
        transactions.filter(pa.array(keep)),
        dead_letters(_payloads(batch, times, rejected, names), [reasons[i] for i in rejected], "parse"),
    )


def check_columns(schema: pa.Schema) -> None:
    """Raises SourceColumnsError for columns that `to_transactions` would refuse, before there are rows."""
    for name in SOURCE_COLUMNS:
        if schema.names.count(name) > 1:
            raise SourceColumnsError(f"Column {name!r} is there {schema.names.count(name)} times")
    # Of other columns the types do not matter, and not all of them make an empty array.
    fields = [field if field.name in SOURCE_COLUMNS else pa.field(field.name, pa.null()) for field in schema]
    to_transactions(empty(pa.schema(fields)), dt.datetime.now(dt.UTC))


def rebatch(
    batches: Iterable[pa.RecordBatch], rows: int = BATCH_ROWS, max_bytes: int = MAX_BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Cuts and joins batches to `rows` rows each, in order.

    The last one may have fewer rows, and so has one that would be larger than `max_bytes`; a larger row
    stands alone. It copies no rows that it can slice.

    >>> batches = [pa.RecordBatch.from_pydict({"n": [1, 2, 3]}), pa.RecordBatch.from_pydict({"n": [4, 5]})]
    >>> [batch.num_rows for batch in rebatch(batches, 2)]
    [2, 2, 1]

    Raises:
      ValueError: `rows` is less than 1.
    """
    if rows < 1:
        raise ValueError(f"rows: expected at least 1, got {rows}")
    held: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            part = _first_rows(batch.slice(start, rows - count), max_bytes - size)
            if not (part.num_rows or held):
                part = batch.slice(start, 1)
            held.append(part)
            start += part.num_rows
            count += part.num_rows
            size += _decoded_bytes(part)
            if count == rows or start < batch.num_rows:  # full, by rows or by bytes
                joined = join(held)
                held, count, size = [], 0, 0
                yield joined
    if held:
        yield join(held)


def _first_rows(batch: pa.RecordBatch, max_bytes: int) -> pa.RecordBatch:
    """Returns the rows of the beginning that have at most `max_bytes`: all, a half, a quarter ..., none."""
    while batch.num_rows and _decoded_bytes(batch) > max_bytes:
        batch = batch.slice(0, batch.num_rows // 2)
    return batch


def _decoded_bytes(batch: pa.RecordBatch) -> int:
    """Returns the bytes of the rows once their dictionaries are decoded; a slice has the whole dictionary."""
    total = 0
    for column in batch.columns:
        if not pa.types.is_dictionary(column.type):
            total += column.nbytes
            continue
        total += column.indices.nbytes
        if pa.types.is_string(column.type.value_type) or pa.types.is_large_string(column.type.value_type):
            total += pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
    return total


def join(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Joins one or more batches of one schema to one batch. A single one is not copied."""
    if len(batches) == 1:
        return batches[0]
    joined = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined[0] if joined else batches[0]


def row_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Returns the rows as dicts for JSON, as BigQuery writes it: times RFC 3339, bytes base64, NaN as text.

    >>> row_dicts(pa.RecordBatch.from_pydict({"raw": [b"abc"], "score": [float("nan")]}))
    [{'raw': 'YWJj', 'score': 'NaN'}]
    """
    return [_plain(row) for row in batch.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _features(batch: pa.RecordBatch, kind: Any) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """The features [n, 30] as numbers of a numpy type, and why a row has none."""
    return _from_list(batch, kind) if "features" in batch.schema.names else (_from_columns(batch, kind), {})


def _from_columns(batch: pa.RecordBatch, kind: Any) -> npt.NDArray[Any]:
    names = batch.schema.names
    missing = [name for name in FEATURES if name not in names]
    if missing:
        raise SourceColumnsError(
            f"The source has no column {', '.join(missing)}. It needs the {N_FEATURES} feature columns "
            f"{FEATURES[0]}, {FEATURES[1]}..{FEATURES[-2]}, {FEATURES[-1]}, or one list column named "
            f"features; it has {', '.join(names)}"
        )
    matrix = np.empty((batch.num_rows, N_FEATURES), kind)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, name in enumerate(FEATURES):
            matrix[:, i] = _numbers(batch.column(name), name)
    return matrix


def _from_list(batch: pa.RecordBatch, kind: Any) -> tuple[npt.NDArray[Any], dict[int, str]]:
    column = batch.column("features")
    if not any(
        is_kind(column.type)
        for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    ):
        raise SourceColumnsError(f"Column 'features' is {column.type}, not a list of {N_FEATURES} numbers")
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    whole = lengths == N_FEATURES
    values = _numbers(column.filter(pa.array(whole)).flatten(), "features")
    matrix = np.full((batch.num_rows, N_FEATURES), np.nan, kind)
    with np.errstate(over="ignore", invalid="ignore"):
        matrix[whole] = values.reshape(-1, N_FEATURES)
    reasons = {
        int(i): "features: null" if lengths[i] < 0 else f"features: {lengths[i]} values, not {N_FEATURES}"
        for i in np.flatnonzero(~whole)
    }
    return matrix, reasons


def _numbers(column: pa.Array, name: str) -> npt.NDArray[Any]:
    """The values as a numpy array of numbers; null becomes NaN."""
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif pa.types.is_null(kind):
        column = column.cast(pa.float32())
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise SourceColumnsError(f"Column {name!r} is {kind}, not a number")
    numbers: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers


def _not_finite(batch: pa.RecordBatch, row: int, feature: int) -> str:
    name = FEATURES[feature]
    column = batch.column("features" if "features" in batch.schema.names else name)
    value = column[row].as_py()
    if isinstance(value, list):
        value = value[feature]
    return f"features: {name} is {'null' if value is None else repr(value)}, not a finite float32"


def _text(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, pa.string())
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_null)
    if not any(is_kind(kind) for is_kind in known):
        raise SourceColumnsError(f"Column {name!r} is {kind}, not a string or an integer")
    return column.cast(pa.string())


def _wrong_length(column: pa.Array) -> list[int]:
    least, most = pc.min_max(pc.binary_length(column)).values()
    if least.as_py() is None or (least.as_py() >= 1 and most.as_py() <= MAX_ID_LENGTH):
        return []  # the usual case: bytes are counted faster than characters, and are no fewer
    lengths = pc.fill_null(pc.utf8_length(column), 1).to_numpy(zero_copy_only=False)
    return [int(i) for i in np.flatnonzero((lengths < 1) | (lengths > MAX_ID_LENGTH))]


def _event_times(batch: pa.RecordBatch) -> pa.Array:
    if "event_time" not in batch.schema.names:
        return pa.nulls(batch.num_rows, _EVENT_TIME)
    column = batch.column("event_time")
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(_EVENT_TIME)
    if not pa.types.is_timestamp(kind):
        raise SourceColumnsError(f"Column 'event_time' is {kind}, not a timestamp")
    if kind.tz is None:
        column = pc.assume_timezone(column, "UTC")
    return pc.cast(column, _EVENT_TIME, safe=False)  # nanoseconds are cut


def _outside(times: pa.Array, default: dt.datetime, rules: MessageRules) -> dict[int, str]:
    """Reasons, by row number, for the times that the rules do not allow."""
    bounds = event_time_bounds(default, rules)
    earliest, latest = (pa.scalar(bound, _EVENT_TIME) for bound in bounds)
    least, most = pc.min_max(times).values()
    if not least.is_valid or (earliest.value <= least.value and most.value <= latest.value):
        return {}  # the usual case
    outside = pc.or_(pc.less(times, earliest), pc.greater(times, latest))
    rows = np.flatnonzero(pc.fill_null(outside, False).to_numpy(zero_copy_only=False)).tolist()
    return {row: outside_text(str(_moment(times[row])), bounds) for row in rows}


def _moment(time: pa.TimestampScalar) -> str | int | None:
    """RFC 3339, or microseconds since the epoch where the year is one that datetime cannot hold."""
    try:
        return time.as_py().isoformat() if time.is_valid else None
    except OverflowError:
        return int(time.value)


def _payloads(
    batch: pa.RecordBatch, times: pa.Array, rows: list[int], passed: Sequence[str] = ()
) -> list[bytes]:
    """These rows as JSON that the message parser takes: only the columns it knows, times in RFC 3339."""
    known_names = {*SOURCE_COLUMNS, *passed} - {"event_time"}
    names = [name for name in batch.schema.names if name in known_names]
    known = row_dicts(batch.select(names).take(pa.array(rows, pa.int64())))
    if "event_time" in batch.schema.names:
        known = [row | {"event_time": _moment(times[i])} for i, row in zip(rows, known, strict=True)]
    return [orjson.dumps(row) for row in known]


def _content(batch: pa.RecordBatch, times: pa.Array) -> npt.NDArray[np.uint8]:
    """Features and time of each row as bytes, one row of the result each. An unknown time counts as 0.

    The features are those of the source, in float64: in float32 two rows that differ could be equal.
    """
    matrix, _ = _features(batch, np.float64)
    micros = pc.fill_null(times.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([matrix.view(np.uint8), micros.reshape(-1, 1).view(np.uint8)], axis=1)


def _fill_ids(ids: pa.Array, content: npt.NDArray[np.uint8], accounts: pa.Array) -> pa.Array:
    """`ids` with derived ones in the place of nulls: 128 bits over content and account, as 32 hex digits.

    Args:
      ids: [n].
      content: bytes of the rows whose id is null, in order.
      accounts: [n].
    """
    missing = ids.is_null()
    width = content.shape[1]
    rows = content.tobytes()
    parts = [rows[i : i + width] for i in range(0, len(rows), width)]
    if accounts.null_count < len(accounts):
        named = accounts.filter(missing).to_pylist()
        parts = [part + (name or "").encode() for part, name in zip(parts, named, strict=True)]
    digests = b"".join([hashlib.blake2b(part, digest_size=16).digest() for part in parts])
    # One string of all digits, cut every 32: a Python string for each row would cost as much as its hash.
    offsets = np.arange(0, 32 * len(parts) + 1, 32, dtype=np.int32)
    derived = pa.StringArray.from_buffers(
        len(parts), pa.py_buffer(offsets), pa.py_buffer(binascii.hexlify(digests))
    )
    return derived if len(parts) == len(ids) else pc.replace_with_mask(ids, missing, derived)
