"""Divides the rows of a columnar source into transactions and dead letters, each row once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from features.arrow import Read, python_value
from features.columns import booleans, one_column
from features.values import shown
from transforms.dead_letter import dead_letters
from transforms.message import Parsed
from transforms.plain_columns import all_false
from transforms.schema import ERROR_RECORDS, empty

DERIVED: Final = "event_time_derived"
_NO_LETTERS = empty(ERROR_RECORDS)


def explain(reasons: dict[int, str], unread: Mapping[int, str], name: str) -> None:
    """Adds the reasons of a field for the rows that have none yet."""
    for row, reason in unread.items():
        reasons.setdefault(row, f"{name}: {reason}")


def unread_keys(source: Mapping[str, pa.Array], reads: Mapping[str, Read]) -> dict[str, dict[int, Any]]:
    """Returns the ids, accounts and times that could not be read, by key and row.

    Args:
      source: by key, the columns as the source has them.
      reads: by key, what was read of them.
    """
    return {
        key: {row: python_value(source[key][row]) for row in read.reasons}
        for key, read in reads.items()
        if read.reasons
    }


def read_derived(column: pa.Array | None, n: int) -> Read:
    """Reads `event_time_derived` of n rows, false where it is null or there is no column.

    Raises:
      ColumnError: the column has neither booleans, numbers nor texts.
    """
    if column is None:
        return Read(all_false(n), {})
    values, bad = booleans(one_column(column), DERIVED)
    reasons = {int(i): f"{shown(column[int(i)].as_py())}, not true or false" for i in np.flatnonzero(bad)}
    return Read(pa.array((values == 1) & ~bad), reasons)


def divided(
    transactions: pa.RecordBatch,
    reasons: Mapping[int, str],
    payloads: Callable[[list[int]], list[bytes]],
    unnamed: pa.Array,
    untimed: pa.Array,
) -> Parsed:
    """Takes the rows with a reason out of a batch, and makes dead letters of them.

    Args:
      transactions: a TRANSACTIONS batch of all rows.
      reasons: by row number, of those that break a rule.
      payloads: makes messages of rows, by their numbers.
      unnamed: bool, the rows whose id is derived.
      untimed: bool, the rows whose time is the default.
    """
    if not reasons:
        return Parsed(transactions, _NO_LETTERS, unnamed.true_count, untimed.true_count)
    rejected = sorted(reasons)
    keep = np.ones(transactions.num_rows, bool)
    keep[rejected] = False
    kept = pa.array(keep)
    letters = dead_letters(payloads(rejected), [reasons[row] for row in rejected], "parse")
    counts = unnamed.filter(kept).true_count, untimed.filter(kept).true_count
    return Parsed(transactions.filter(kept), letters, *counts)
