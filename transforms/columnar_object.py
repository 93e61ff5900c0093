"""Rows of a columnar source whose fields have several types, nested ones among them. No Beam here."""

from __future__ import annotations

import datetime as dt
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features import arrow
from features.arrow import Read
from features.columns import (
    ColumnError,
    booleans,
    category_texts,
    find_column,
    numbers,
    required_column,
    timestamps,
)
from features.roles import KEYS, OPTIONS, Roles
from features.rows import EXPECTED, is_missing
from features.times import time_text
from features.values import shown
from transforms.derived_ids import fill_ids
from transforms.division import DERIVED, divided, explain, read_derived, unread_keys
from transforms.event_times import EVENT_TIME, outside_reasons
from transforms.forms import ObjectForm
from transforms.json_rows import object_messages
from transforms.message import MessageRules, Parsed
from transforms.trace import message_trace, outer_names

_SEPARATOR: Final = "\x1f"


def object_columns(form: ObjectForm, roles: Roles) -> tuple[str, ...]:
    """Returns the columns to ask a source for: of a nested field also the struct that holds it."""
    return outer_names([*(getattr(roles, key) for key in KEYS), *KEYS, DERIVED, *form.fields])


def object_transactions(
    batch: pa.RecordBatch,
    default_event_time: dt.datetime,
    form: ObjectForm,
    rules: MessageRules,
    passed: pa.Array | None,
) -> Parsed:
    """Does what `transforms.columnar.to_transactions` does, for the rows of an ObjectForm.

    Raises:
      ColumnError: a column is missing, or has a type that its field cannot use.
      ColumnTypeError: that of a role has.
    """
    n = batch.num_rows
    source = {name: required_column(batch, name) for name in form.fields}
    raw: dict[str, pa.Array] = {}
    reasons: dict[int, str] = {}
    for name, kind in form.fields.items():
        raw[name], unread = _raw(source[name], kind, name)
        explain(reasons, unread, name)
    roles = {key: _role_column(batch, key, rules.roles) for key in KEYS}
    ids = arrow.identifiers(roles["transaction_id"], rules.roles.transaction_id)
    accounts = arrow.identifiers(roles["account_id"], rules.roles.account_id)
    times = _event_times(roles["event_time"], rules.roles)
    sent = find_column(batch, DERIVED)
    derived = read_derived(None if sent is None else arrow.plain(sent), n)
    reads = dict(zip((*KEYS, DERIVED), (ids, accounts, times, derived), strict=True))
    for key, read in reads.items():
        explain(reasons, read.reasons, key)
    for row, reason in outside_reasons(times.column, default_event_time, rules).items():
        reasons.setdefault(row, reason)
    moments = pc.fill_null(times.column, pa.scalar(default_event_time, EVENT_TIME))
    assembled = form.encode(raw, moments)
    for row, reason in assembled.reasons.items():
        reasons.setdefault(row, reason)
    unnamed, untimed = ids.column.is_null(), times.column.is_null()
    named = ids.column
    if named.null_count:
        content = _content(
            {name: column.filter(unnamed) for name, column in {**raw, "": times.column}.items()}
        )
        named = fill_ids(named, content, accounts.column)
    others = [*assembled.columns(), *message_trace(None, None, passed, n)]
    transactions = pa.RecordBatch.from_arrays(
        [named, accounts.column, moments, pc.or_(untimed, derived.column), *others], schema=form.schema
    )

    def payloads(rows: list[int]) -> list[bytes]:
        return object_messages(transactions, rows, source, unread_keys({**roles, DERIVED: sent}, reads))

    return divided(transactions, reasons, payloads, unnamed, untimed)


def _raw(column: pa.Array, kind: str, name: str) -> Read:
    """The values of a field in the type of transforms.forms.TYPES, null where they are missing."""
    if kind == "category":
        texts, bad = category_texts(column, name)
        raw = texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts
    else:
        read = booleans if kind == "boolean" else numbers
        values, bad = read(arrow.plain(column), name)
        if kind == "number":
            bad = bad | np.isinf(values)
        is_null = np.isnan(values) | bad
        raw = pa.array(np.where(is_null, 0, values), mask=is_null)
        raw = raw.cast(pa.bool_()) if kind == "boolean" else raw
    return Read(
        raw,
        {
            row: f"expected {EXPECTED[kind]}, got {_shown(column, row)}"
            for row in np.flatnonzero(bad).tolist()
        },
    )


def _shown(column: pa.Array, row: int) -> str:
    value = arrow.python_value(column[row])
    return shown(None if is_missing(value) else value)


def _role_column(batch: pa.RecordBatch, key: str, roles: Roles) -> pa.Array:
    """The column of a role, in a plain type; all null where there is none of its own name."""
    name = getattr(roles, key)
    column = find_column(batch, name, is_role=True)
    if column is None and name != key:
        column = find_column(batch, key, is_role=True)
        if column is None:
            raise ColumnError(
                f"{OPTIONS[key]}: there is no column {name}; it has {', '.join(batch.schema.names)}"
            )
    return pa.nulls(batch.num_rows) if column is None else arrow.plain(column)


def _event_times(column: pa.Array, roles: Roles) -> Read:
    if roles.time_format == "any":  # of a date as well this one says that it is no time
        times, reasons = arrow.event_times(column, roles.event_time)
        unread = [*reasons]
    else:
        times, bad = timestamps(column, roles.time_format, roles.event_time)
        unread = np.flatnonzero(bad).tolist()
    expected = time_text(roles.time_format)
    return Read(
        times, {row: f"expected {expected}, got {shown(arrow.python_value(column[row]))}" for row in unread}
    )


def _content(values: dict[str, pa.Array]) -> list[bytes]:
    """The raw values and the time of each row as bytes, for a hash."""
    texts = [pc.fill_null(column.cast(pa.string()), "\x00") for column in values.values()]
    joined = pc.binary_join_element_wise(*texts, _SEPARATOR)
    return [text.encode() for text in joined.to_pylist()]
