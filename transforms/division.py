"""Divides the rows of a columnar source into transactions and dead letters, each row once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from features.arrow import Read
from features.roles import KEYS
from transforms.dead_letter import dead_letters
from transforms.message import Parsed
from transforms.schema import ERROR_RECORDS, empty

_NO_LETTERS = empty(ERROR_RECORDS)


def explain(reasons: dict[int, str], unread: Mapping[int, str], name: str) -> None:
    """Adds the reasons of a field for the rows that have none yet."""
    for row, reason in unread.items():
        reasons.setdefault(row, f"{name}: {reason}")


def unread_keys(source: Mapping[str, pa.Array], reads: Sequence[Read]) -> dict[str, dict[int, Any]]:
    """Returns the ids, accounts and times that could not be read, by key and row.

    Args:
      source: by key, the columns as the source has them.
      reads: of each of KEYS.
    """
    return {
        key: {row: source[key][row].as_py() for row in read.reasons}
        for key, read in zip(KEYS, reads, strict=True)
    }


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
