"""Record batches from a source that is columnar already: BigQuery, Parquet. No Beam here."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features import arrow
from features.columns import ColumnError
from features.roles import KEYS, OPTIONS, Roles, find_column
from features.values import shown
from transforms.columnar_object import object_columns, object_transactions
from transforms.derived_ids import fill_ids, row_bytes
from transforms.division import DERIVED, divided, explain, read_derived, unread_keys
from transforms.event_times import EVENT_TIME, outside_reasons
from transforms.forms import ListForm, ObjectForm, raw_fields
from transforms.json_rows import row_messages
from transforms.message import MessageRules, Parsed
from transforms.schema import empty
from transforms.trace import message_trace, outer_names, passed_columns

_MOST_LISTED: Final = 8
_COMMON: Final = (*KEYS, DERIVED, "features")

_Columns = Mapping[str, pa.Array]
"""The columns of a source that are known, by the role, "features", or the name of a feature."""


class SourceColumnsError(ValueError):
    """A source lacks a column, or has one of a type that cannot be used. The text names it."""


def source_columns(rules: MessageRules) -> tuple[str, ...]:
    """Returns the columns to ask a source for; it need not have all of them, nor read any other.

    >>> source_columns(MessageRules(roles=Roles(event_time="timestamp")))[:4]
    ('transaction_id', 'account_id', 'timestamp', 'event_time_derived')
    """
    form = rules.encoding.form
    if isinstance(form, ListForm):
        read = tuple(getattr(rules.roles, name, name) for name in (*_COMMON, *form.names))
    else:
        read = object_columns(form, rules.roles)
    return tuple(dict.fromkeys((*read, *outer_names(rules.pass_through))))


def columns_of(rules: MessageRules, kind: str) -> frozenset[str]:
    """Returns the columns of `source_columns` with values of a kind, for sources that do not tell."""
    return frozenset(name for name, value in raw_fields(rules.encoding.spec).items() if value == kind)


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
    """Validates rows, all at once, by the rules for values of docs/messages.md.

    - The columns of the features; where all are numbers also `features`, a list of them. A row whose list is
      null or empty is read from the columns, where they are there.
    - The columns that `rules.roles` name, by default `transaction_id`, `account_id` and `event_time`. A null
      id is derived from features, `event_time` and `account_id`, so that reading again gives the same id, and
      equal rows count as one. A null time is `default_event_time`, marked as derived.

    >>> row = {name: [1.0] for name in MessageRules().encoding.spec.names} | {"transaction_id": ["t-1"]}
    >>> parsed = to_transactions(pa.RecordBatch.from_pydict(row), dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
    >>> parsed.transactions.column("transaction_id").to_pylist()
    ['t-1']

    A column is found by its name, otherwise by its name without case. Other columns are ignored, also the
    label.

    Args:
      batch: the rows.
      default_event_time: timezone-aware. Fix it at launch, so that a repeated bundle gives the same rows.
      rules: whose `roles`, `encoding`, `max_lead` and `max_age` hold; those of a message when None.

    Returns:
      A TRANSACTIONS batch, and an ERROR_RECORDS batch whose payloads are the rejected rows as messages, in
      the form in which they would have been scored. Together they hold every row once, in order.

    Raises:
      SourceColumnsError: feature columns are missing, or a column has an impossible type.
    """
    rules = rules or MessageRules()
    form = rules.encoding.form
    try:
        passed = passed_columns(batch, rules.pass_through) if rules.pass_through else None
        if isinstance(form, ObjectForm):
            return object_transactions(batch, default_event_time, form, rules, passed)
        source = _known(batch, form.names, rules.roles)
        return _validated(source, batch.num_rows, default_event_time, form, rules, passed)
    except (arrow.ColumnTypeError, ColumnError) as error:
        raise SourceColumnsError(str(error)) from error
    except pa.ArrowNotImplementedError as error:
        raise SourceColumnsError(f"A column has a type that Arrow cannot read so: {error}") from error


def _validated(
    source: _Columns,
    n: int,
    default_event_time: dt.datetime,
    form: ListForm,
    rules: MessageRules,
    passed: pa.Array | None,
) -> Parsed:
    matrix, reasons = _features(source, n, np.float32, form.names)
    finite = np.isfinite(matrix)
    if not finite.all():
        for row in np.flatnonzero(~finite.all(axis=1)).tolist():
            if row not in reasons:
                reasons[row] = _not_finite(source, row, int(np.flatnonzero(~finite[row])[0]), form.names)
    absent = pa.nulls(n)
    ids = arrow.identifiers(source.get("transaction_id", absent), rules.roles.transaction_id)
    accounts = arrow.identifiers(source.get("account_id", absent), rules.roles.account_id)
    times = arrow.event_times(source.get("event_time", absent), rules.roles.event_time)
    derived = read_derived(source.get(DERIVED), n)
    reads = dict(zip((*KEYS, DERIVED), (ids, accounts, times, derived), strict=True))
    for name, read in reads.items():
        explain(reasons, read.reasons, name)
    for i, reason in outside_reasons(times.column, default_event_time, rules).items():
        reasons.setdefault(i, reason)
    named, unnamed = ids.column, ids.column.is_null()
    if named.null_count:
        content = _content(
            {name: column.filter(unnamed) for name, column in source.items()},
            times.column.filter(unnamed),
            form.names,
        )
        named = fill_ids(named, row_bytes(content), accounts.column)
    untimed = times.column.is_null()
    features = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), len(form.names))
    transactions = pa.RecordBatch.from_arrays(
        [
            named,
            accounts.column,
            pc.fill_null(times.column, pa.scalar(default_event_time, EVENT_TIME)),
            pc.or_(untimed, derived.column),
            features,
            *message_trace(None, None, passed, n),
        ],
        schema=form.schema,
    )

    def payloads(rows: list[int]) -> list[bytes]:
        values = [_source_values(source, i, form.names) for i in rows]
        return row_messages(transactions, rows, values, unread_keys(source, reads), form.names)

    return divided(transactions, reasons, payloads, unnamed, untimed)


def _known(batch: pa.RecordBatch, features: tuple[str, ...], roles: Roles) -> _Columns:
    """The columns that a batch has, by their roles and the names of features, in plain types."""
    found = _positions(tuple(batch.schema.names), features, roles)
    arrays = batch.columns
    return {name: arrow.plain(arrays[position]) for name, position in found.items()}


@functools.lru_cache(maxsize=64)
def _positions(present: tuple[str, ...], features: tuple[str, ...], roles: Roles) -> dict[str, int]:
    """The positions of the columns that are known among these."""
    names: dict[str, int] = {}
    for known in (*_COMMON, *features):
        wanted = getattr(roles, known) if known in KEYS else known
        found = present_columns([wanted], present)
        if found:
            if present.count(found[0]) > 1:
                raise SourceColumnsError(f"Column {found[0]!r} is there {present.count(found[0])} times")
            names[known] = present.index(found[0])
        elif wanted != known:
            raise SourceColumnsError(f"{OPTIONS[known]}: there is no column {wanted}; {_they_are(present)}")
    if "features" not in names and (missing := [name for name in features if name not in names]):
        raise SourceColumnsError(
            f"The source has no column {', '.join(missing)}. It needs the {len(features)} feature columns "
            f"{_listed(features)}, or one list column named features; {_they_are(present)}"
        )
    return names


def _listed(names: Sequence[str]) -> str:
    if len(names) > _MOST_LISTED:
        return f"{names[0]}, {names[1]}..{names[-2]}, {names[-1]}"
    return ", ".join(names)


def _they_are(names: Sequence[str]) -> str:
    return f"it has {', '.join(names)}"


def check_columns(schema: pa.Schema, rules: MessageRules | None = None) -> None:
    """Raises SourceColumnsError for columns that `to_transactions` would refuse, before there are rows."""
    # What passes through may have any type.
    rules = dataclasses.replace(rules or MessageRules(), pass_through=())
    used = present_columns(source_columns(rules), schema.names)
    # Of other columns the types do not matter, and not all of them make an empty array.
    fields = [field if field.name in used else pa.field(field.name, pa.null()) for field in schema]
    to_transactions(empty(pa.schema(fields)), dt.datetime.now(dt.UTC), rules)


def _features(
    source: _Columns, n: int, kind: Any, names: tuple[str, ...]
) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """The features [n, features] as numbers of a numpy type, and why a row has none."""
    if not _has_lists(source):
        if not _is_named(source, names):
            raise SourceColumnsError(
                f"Column 'features' is {source['features'].type}, not a list of {len(names)} numbers"
            )
        return _from_columns(source, n, kind, names), {}
    matrix, lengths = _from_lists(source["features"], kind, names)
    if _is_named(source, names) and (lengths < 1).any():
        rows = np.flatnonzero(lengths < 1)
        named = {name: source[name].take(pa.array(rows)) for name in names}
        matrix[rows] = _from_columns(named, len(rows), kind, names)
        lengths[rows] = len(names)
    return matrix, {
        int(i): "features: null" if lengths[i] < 0 else f"features: {lengths[i]} values, not {len(names)}"
        for i in np.flatnonzero(lengths != len(names))
    }


def _is_named(source: _Columns, names: tuple[str, ...]) -> bool:
    return all(name in source for name in names)


def _has_lists(source: _Columns) -> bool:
    return "features" in source and any(
        is_kind(source["features"].type)
        for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )


def _from_columns(source: _Columns, n: int, kind: Any, names: tuple[str, ...]) -> npt.NDArray[Any]:
    matrix = np.empty((n, len(names)), kind)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, name in enumerate(names):
            matrix[:, i] = arrow.numbers(source[name], name)
    return matrix


def _from_lists(
    column: pa.Array, kind: Any, names: tuple[str, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The lists of the right length as numbers, NaN in other rows; and all lengths, -1 for null."""
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    whole = lengths == len(names)
    values = arrow.numbers(arrow.plain(column.filter(pa.array(whole)).flatten()), "features")
    matrix = np.full((len(column), len(names)), np.nan, kind)
    with np.errstate(over="ignore", invalid="ignore"):
        matrix[whole] = values.reshape(-1, len(names))
    return matrix, lengths


def _source_values(source: _Columns, row: int, names: tuple[str, ...]) -> list[Any]:
    """The features of a row as the source has them, in order; of another number where its list is."""
    values = source["features"][row].as_py() if _has_lists(source) else None
    if not values and _is_named(source, names):
        return [source[name][row].as_py() for name in names]
    return values or []


def _not_finite(source: _Columns, row: int, feature: int, names: tuple[str, ...]) -> str:
    value = shown(_source_values(source, row, names)[feature])
    return f"features: {names[feature]} is {value}, not a finite float32"


def _content(source: _Columns, times: pa.Array, names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """Features and time of each row as bytes, one row of the result each. An unknown time counts as 0.

    The features are those of the source, in float64: in float32 two rows that differ could be equal.
    """
    matrix, _ = _features(source, len(times), np.float64, names)
    micros = pc.fill_null(times.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([matrix.view(np.uint8), micros.reshape(-1, 1).view(np.uint8)], axis=1)
