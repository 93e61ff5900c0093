"""Record batches from a source that is columnar already: BigQuery, Parquet. No Beam here."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.limits import MAX_BATCH_BYTES
from model import columns
from model.features import FEATURES, N_FEATURES
from model.roles import OPTIONS, Roles, find_column
from model.values import shown
from transforms.dead_letter import dead_letters
from transforms.derived_ids import fill_ids
from transforms.json_rows import moment_text, row_messages
from transforms.message import MessageRules, Parsed, event_time_bounds, outside_text
from transforms.schema import ERROR_RECORDS, TRANSACTIONS, empty

BATCH_ROWS: Final = 16 * 1024
"""Rows in the batches of a columnar source: enough that the cost of a batch at every step vanishes."""

_ROLES: Final = ("transaction_id", "account_id", "event_time")
SOURCE_COLUMNS: Final = (*_ROLES, "event_time_derived", "features", *FEATURES)
"""The columns that `to_transactions` looks at; a source need not read any other."""

_Columns = Mapping[str, pa.Array]
"""The columns of a source that are known, by the names of SOURCE_COLUMNS."""

_NO_LETTERS: Final = empty(ERROR_RECORDS)
_EVENT_TIME: Final = TRANSACTIONS.field("event_time").type


class SourceColumnsError(ValueError):
    """A source lacks a column, or has one of a type that cannot be used. The text names it."""


def source_columns(roles: Roles) -> tuple[str, ...]:
    """Returns the columns to ask a source for.

    >>> source_columns(Roles(event_time="timestamp"))[:4]
    ('transaction_id', 'account_id', 'timestamp', 'event_time_derived')
    """
    return tuple(getattr(roles, name, name) for name in SOURCE_COLUMNS)


def present_columns(wanted: Iterable[str], present: Sequence[str]) -> list[str]:
    """Returns those of the wanted columns that a source has, as it spells them.

    >>> present_columns(["transaction_id", "Time", "V1"], ["TIME", "v1", "Class"])
    ['TIME', 'v1']

    Raises:
      SourceColumnsError: several columns differ in case alone.
    """
    try:
        return [name for one in wanted if (name := find_column(present, one)) is not None]
    except ValueError as error:
        raise SourceColumnsError(str(error)) from error


def to_transactions(
    batch: pa.RecordBatch, default_event_time: dt.datetime, rules: MessageRules | None = None
) -> Parsed:
    """Validates rows in the ULB layout, all at once, by the rules for values of docs/messages.md.

    - The 30 columns of model.features; or `features`, a list of 30. A row whose list is null or empty is read
      from the 30 columns, where they are there.
    - The columns that `rules.roles` name, by default `transaction_id`, `account_id` and `event_time`. A null
      id is derived from features, `event_time` and `account_id`, so that reading again gives the same id, and
      equal rows count as one. A null time is `default_event_time`, marked as derived.

    >>> row = {name: [1.0] for name in FEATURES} | {"transaction_id": ["t-1"]}
    >>> parsed = to_transactions(pa.RecordBatch.from_pydict(row), dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
    >>> parsed.transactions.column("transaction_id").to_pylist()
    ['t-1']

    A column is found by its name, otherwise by its name without case. Other columns are ignored, also the
    label.

    Args:
      batch: the rows.
      default_event_time: timezone-aware. Fix it at launch, so that a repeated bundle gives the same rows.
      rules: whose `roles`, `max_lead` and `max_age` hold; those of a message when None.

    Returns:
      A TRANSACTIONS batch, and an ERROR_RECORDS batch whose payloads are the rejected rows as messages, in
      the form in which they would have been scored. Together they hold every row once, in order.

    Raises:
      SourceColumnsError: feature columns are missing, or a column has an impossible type.
    """
    rules = rules or MessageRules()
    try:
        return _validated(_known(batch, rules.roles), batch.num_rows, default_event_time, rules)
    except columns.ColumnTypeError as error:
        raise SourceColumnsError(str(error)) from error


def _validated(source: _Columns, n: int, default_event_time: dt.datetime, rules: MessageRules) -> Parsed:
    matrix, reasons = _features(source, n, np.float32)
    finite = np.isfinite(matrix)
    if not finite.all():
        for row in np.flatnonzero(~finite.all(axis=1)).tolist():
            if row not in reasons:
                reasons[row] = _not_finite(source, row, int(np.flatnonzero(~finite[row])[0]))
    absent = pa.nulls(n)
    ids = columns.identifiers(source.get("transaction_id", absent), rules.roles.transaction_id)
    accounts = columns.identifiers(source.get("account_id", absent), rules.roles.account_id)
    times = columns.event_times(source.get("event_time", absent), rules.roles.event_time)
    for name, read in zip(_ROLES, (ids, accounts, times), strict=True):
        for i, reason in read.reasons.items():
            reasons.setdefault(i, f"{name}: {reason}")
    for i, reason in _outside(times.column, default_event_time, rules).items():
        reasons.setdefault(i, reason)
    named, unnamed = ids.column, ids.column.is_null()
    if named.null_count:
        content = _content(
            {name: column.filter(unnamed) for name, column in source.items()}, times.column.filter(unnamed)
        )
        named = fill_ids(named, content, accounts.column)
    untimed = times.column.is_null()
    features = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), N_FEATURES)
    transactions = pa.RecordBatch.from_arrays(
        [
            named,
            accounts.column,
            pc.fill_null(times.column, pa.scalar(default_event_time, _EVENT_TIME)),
            pc.or_(untimed, _derived(source["event_time_derived"]))
            if "event_time_derived" in source
            else untimed,
            features,
        ],
        schema=TRANSACTIONS,
    )
    if not reasons:
        return Parsed(transactions, _NO_LETTERS, _count(unnamed), _count(untimed))
    rejected = sorted(reasons)
    keep = np.ones(n, bool)
    keep[rejected] = False
    kept = pa.array(keep)
    unread = {
        name: {i: source[name][i].as_py() for i in read.reasons}
        for name, read in zip(_ROLES, (ids, accounts, times), strict=True)
    }
    payloads = row_messages(transactions, rejected, [_source_values(source, i) for i in rejected], unread)
    letters = dead_letters(payloads, [reasons[i] for i in rejected], "parse")
    counts = _count(unnamed.filter(kept)), _count(untimed.filter(kept))
    return Parsed(transactions.filter(kept), letters, *counts)


def _count(mask: pa.Array) -> int:
    return int(mask.true_count)


def _known(batch: pa.RecordBatch, roles: Roles) -> _Columns:
    """The columns of SOURCE_COLUMNS that a batch has, under these names and in plain types."""
    found = _positions(tuple(batch.schema.names), roles)
    arrays = batch.columns
    return {name: columns.plain(arrays[position]) for name, position in found.items()}


@functools.lru_cache(maxsize=64)
def _positions(present: tuple[str, ...], roles: Roles) -> dict[str, int]:
    """The positions of the columns of SOURCE_COLUMNS that are among these, by their names there."""
    names: dict[str, int] = {}
    for known, wanted in zip(SOURCE_COLUMNS, source_columns(roles), strict=True):
        found = present_columns([wanted], present)
        if found:
            if present.count(found[0]) > 1:
                raise SourceColumnsError(f"Column {found[0]!r} is there {present.count(found[0])} times")
            names[known] = present.index(found[0])
        elif wanted != known:
            raise SourceColumnsError(f"{OPTIONS[known]}: there is no column {wanted}; {_they_are(present)}")
    if "features" not in names and (missing := [name for name in FEATURES if name not in names]):
        raise SourceColumnsError(
            f"The source has no column {', '.join(missing)}. It needs the {N_FEATURES} feature columns "
            f"{FEATURES[0]}, {FEATURES[1]}..{FEATURES[-2]}, {FEATURES[-1]}, or one list column named "
            f"features; {_they_are(present)}"
        )
    return names


def _they_are(names: Sequence[str]) -> str:
    return f"it has {', '.join(names)}"


def check_columns(schema: pa.Schema, roles: Roles | None = None) -> None:
    """Raises SourceColumnsError for columns that `to_transactions` would refuse, before there are rows."""
    roles = roles or Roles()
    used = present_columns(source_columns(roles), schema.names)
    # Of other columns the types do not matter, and not all of them make an empty array.
    fields = [field if field.name in used else pa.field(field.name, pa.null()) for field in schema]
    to_transactions(empty(pa.schema(fields)), dt.datetime.now(dt.UTC), MessageRules(roles=roles))


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


def _features(source: _Columns, n: int, kind: Any) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """The features [n, 30] as numbers of a numpy type, and why a row has none."""
    if not _has_lists(source):
        if not _is_named(source):
            raise SourceColumnsError(
                f"Column 'features' is {source['features'].type}, not a list of {N_FEATURES} numbers"
            )
        return _from_columns(source, n, kind), {}
    matrix, lengths = _from_lists(source["features"], kind)
    if _is_named(source) and (lengths < 1).any():
        rows = np.flatnonzero(lengths < 1)
        named = {name: source[name].take(pa.array(rows)) for name in FEATURES}
        matrix[rows] = _from_columns(named, len(rows), kind)
        lengths[rows] = N_FEATURES
    return matrix, {
        int(i): "features: null" if lengths[i] < 0 else f"features: {lengths[i]} values, not {N_FEATURES}"
        for i in np.flatnonzero(lengths != N_FEATURES)
    }


def _is_named(source: _Columns) -> bool:
    return all(name in source for name in FEATURES)


def _has_lists(source: _Columns) -> bool:
    return "features" in source and any(
        is_kind(source["features"].type)
        for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )


def _from_columns(source: _Columns, n: int, kind: Any) -> npt.NDArray[Any]:
    matrix = np.empty((n, N_FEATURES), kind)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, name in enumerate(FEATURES):
            matrix[:, i] = columns.numbers(source[name], name)
    return matrix


def _from_lists(column: pa.Array, kind: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The lists of 30 as numbers, NaN in other rows, and the length of each list, -1 where it is null."""
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    whole = lengths == N_FEATURES
    values = columns.numbers(columns.plain(column.filter(pa.array(whole)).flatten()), "features")
    matrix = np.full((len(column), N_FEATURES), np.nan, kind)
    with np.errstate(over="ignore", invalid="ignore"):
        matrix[whole] = values.reshape(-1, N_FEATURES)
    return matrix, lengths


def _source_values(source: _Columns, row: int) -> list[Any]:
    """The features of a row as the source has them, in order; of another number where its list is."""
    values = source["features"][row].as_py() if _has_lists(source) else None
    if not values and _is_named(source):
        return [source[name][row].as_py() for name in FEATURES]
    return values or []


def _not_finite(source: _Columns, row: int, feature: int) -> str:
    value = shown(_source_values(source, row)[feature])
    return f"features: {FEATURES[feature]} is {value}, not a finite float32"


def _derived(column: pa.Array) -> pa.Array:
    if not (pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
        raise SourceColumnsError(f"Column 'event_time_derived' is {column.type}, not a boolean")
    return pc.fill_null(column.cast(pa.bool_()), False)


def _outside(times: pa.Array, default: dt.datetime, rules: MessageRules) -> dict[int, str]:
    """Reasons, by row number, for the times that the rules do not allow."""
    bounds = event_time_bounds(default, rules)
    earliest, latest = (pa.scalar(bound, _EVENT_TIME) for bound in bounds)
    least, most = pc.min_max(times).values()
    if not least.is_valid or (earliest.value <= least.value and most.value <= latest.value):
        return {}  # the usual case
    outside = pc.or_(pc.less(times, earliest), pc.greater(times, latest))
    rows = np.flatnonzero(pc.fill_null(outside, False).to_numpy(zero_copy_only=False)).tolist()
    return {row: outside_text(moment_text(times[row]), bounds) for row in rows}


def _content(source: _Columns, times: pa.Array) -> npt.NDArray[np.uint8]:
    """Features and time of each row as bytes, one row of the result each. An unknown time counts as 0.

    The features are those of the source, in float64: in float32 two rows that differ could be equal.
    """
    matrix, _ = _features(source, len(times), np.float64)
    micros = pc.fill_null(times.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([matrix.view(np.uint8), micros.reshape(-1, 1).view(np.uint8)], axis=1)
