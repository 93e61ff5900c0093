"""Computes the history features of all rows of a table: for training, evaluation, and the check of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.arrow import ColumnTypeError, identifiers, is_text, plain
from features.columns import (
    ColumnEncoder,
    ColumnError,
    category_texts,
    find_column,
    numbers,
    one_column,
    timestamps,
)
from features.declaration import FeatureSpec
from features.history.hashing import NO_KEY
from features.history.plan import plans
from features.history.rows import inputs_of
from features.history.state import Block, merge
from features.history.update import update
from features.learning import learn

ROWS_AT_ONCE: Final = 65_536


def add_history(
    spec: FeatureSpec, table: pa.Table | pa.RecordBatch, columns: Mapping[str, pa.Array]
) -> dict[str, pa.Array]:
    """Adds the history features to the columns of a table, in the order of the event times.

    Rows of one time go by their ids, as in a batch job; where the table has no ids, as they stand. A row that
    the spec refuses would be a dead letter: it has no history, and is in none.

    >>> count = {"kind": "history", "statistic": "count", "by": "account", "half_life": "1d"}
    >>> spec = FeatureSpec.from_json({"features": [{"name": "payments", **count}]})
    >>> table = pa.table({"account_id": ["a", "b", "a"], "event_time": [86400, 0, 0]})
    >>> add_history(spec, table, {})["payments"].to_pylist()
    [0.5, 0.0, 0.0]

    Args:
      spec: the features.
      table: with the columns of the account and the event time, and of the id where there is one.
      columns: of `FeatureSpec.message_fields`.

    Raises:
      ColumnError: the account or the event time is not there, or a column has a type that cannot be used.
    """
    added = dict(columns)
    if not spec.history:
        return added
    roles = spec.roles
    by_account = next((feature for feature in spec.history if feature.by is None), None)
    accounts = find_column(table, roles.account_id, is_role=True) if by_account else pa.nulls(table.num_rows)
    if accounts is None:
        assert by_account is not None
        raise ColumnError(
            f"The source has no column {roles.account_id!r}, the account, which the history feature "
            f"{by_account.name!r} is computed by: write account: with the column in the feature spec"
        )
    moments = find_column(table, roles.event_time, is_role=True)
    if moments is None:
        raise ColumnError(
            f"The source has no column {roles.event_time!r}, the event time, which the history feature "
            f"{spec.history[0].name!r} needs: write event_time: with the column in the feature spec"
        )
    times, _ = timestamps(moments, roles.time_format, roles.event_time)
    is_refused = _refused(spec, table, columns)
    order = _in_order(times, find_column(table, roles.transaction_id))
    for plan in plans(spec):
        rows = inputs_of(plan, accounts, times, columns)
        rows = rows._replace(keys=np.where(is_refused, np.uint64(NO_KEY), rows.keys))
        values = np.empty((len(order), len(plan.names)))
        block = Block.empty(plan)
        for start in range(0, len(order), ROWS_AT_ONCE):
            index = order[start : start + ROWS_AT_ONCE]
            values[index], changed = update(plan, block, rows.take(index))
            block = merge(block, changed)
        added |= {name: pa.array(column) for name, column in zip(plan.names, values.T, strict=True)}
    return added


def _in_order(times: pa.Array, ids: pa.Array | None) -> npt.NDArray[np.intp]:
    """Returns the positions of rows by time, then by id; by time alone where ids are no texts or integers."""
    keys = {"time": times}
    if ids is not None:
        texts = plain(ids)
        if is_text(texts.type) or pa.types.is_integer(texts.type):
            keys["id"] = texts if is_text(texts.type) else texts.cast(pa.string())
    order: npt.NDArray[np.intp] = pc.sort_indices(
        pa.table(keys), sort_keys=[(name, "ascending") for name in keys]
    ).to_numpy()
    return order


def _refused(
    spec: FeatureSpec, table: pa.Table | pa.RecordBatch, columns: Mapping[str, pa.Array]
) -> npt.NDArray[np.bool_]:
    """Marks the rows that are dead letters in a pipeline."""
    is_refused = np.zeros(table.num_rows, bool)
    for name in (spec.roles.transaction_id, spec.roles.account_id):
        is_refused[_refused_ids(find_column(table, name, is_role=True), name)] = True
    if columns:
        encoder = ColumnEncoder(spec, learn(spec, columns))
        is_refused[list(encoder.encode(columns).reasons)] = True
    for name, kind in spec.message_values.items():
        if name in columns and name not in spec.fields:  # the history alone is made of it
            read = category_texts if kind == "category" else numbers
            is_refused |= read(plain(one_column(columns[name])), name)[1]
    return is_refused


def _refused_ids(column: pa.Array | None, name: str) -> list[int]:
    if column is None:
        return []
    try:
        return [*identifiers(plain(column), name).reasons]
    except ColumnTypeError:  # a job refuses the whole column
        return []
