"""Shows what a feature spec makes of the columns of a table, with examples."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from common.output import safe_text
from features.arrow import python_value, python_values
from features.columns import ColumnEncoder, field_columns, find_column, required_column
from features.declaration import Feature, FeatureSpec
from features.history.columns import add_history
from features.kinds import HISTORY
from features.learning import learn
from features.learnt import Encoded, Learnt
from features.looks import fields_of
from features.words import meaning

EXAMPLES: Final = 3
_CHARACTERS: Final = 30


class Preview(NamedTuple):
    """Rows for a table, one a column; and the reasons of refused rows."""

    rows: list[dict[str, Any]]
    refused: dict[int, str]


def preview(spec: FeatureSpec, table: pa.Table) -> Preview:
    """Encodes a table as training would, and describes what becomes of each column.

    >>> feature = {"name": "x", "kind": "number", "scale": "log"}
    >>> spec = FeatureSpec.from_json({"amount": "x", "features": [feature]})
    >>> for row in preview(spec, pa.table({"x": [2.0, None], "y": [1, 2]})).rows[3:]:
    ...     print(row)
    {'column': 'x', 'becomes': 'amount', 'examples': '2.0', 'refused': 0}
    {'column': 'x', 'becomes': 'feature x: number, log scale', 'examples': '2.0 -> 2', 'refused': 1}
    {'column': 'y', 'becomes': 'not used', 'examples': '1, 2', 'refused': 0}

    Raises:
      ColumnError: a column is missing, or has a type that its feature cannot use.
    """
    columns = add_history(spec, table, field_columns(table, spec.message_fields))
    learnt = learn(spec, columns)
    encoded = ColumnEncoder(spec, learnt).encode(columns)
    rows = _role_rows(spec, table)
    for at, feature in enumerate(spec.features):
        rows.append(_feature_row(spec, at, columns[feature.source], learnt, encoded))
    known = {row["column"] for row in rows}
    unused = [name for name, _ in fields_of(table.schema) if name not in known]
    rows += [_row(name, "not used", _examples(required_column(table, name))) for name in unused]
    return Preview(rows, encoded.reasons)


def _role_rows(spec: FeatureSpec, table: pa.Table) -> list[dict[str, Any]]:
    roles = spec.roles
    named = [
        ("transaction id", roles.transaction_id, "derived from the content"),
        ("account", roles.account_id, "none"),
        ("event time", roles.event_time, "time of the publication or of the job"),
        ("amount", roles.amount, "none"),
        ("label, for training alone", roles.label, "none: trained without labels"),
        *(("carried to scores and alerts", name, "none") for name in roles.pass_through),
    ]
    rows = []
    for role, name, otherwise in named:
        if name is not None:
            column = find_column(table, name)
            examples = f"no such column: {otherwise}" if column is None else _examples(column)
            rows.append(_row(name, role, examples))
    return rows


def _feature_row(
    spec: FeatureSpec, at: int, column: pa.Array, learnt: Learnt, encoded: Encoded
) -> dict[str, Any]:
    feature = spec.features[at]
    inputs = [i for i, group in enumerate(spec.groups) if group == at]
    # Arrays with equal values may differ in their inputs only where a row is refused for another feature.
    is_good = np.isfinite(encoded.inputs[:, inputs]).all(axis=1)
    examples: dict[str, str] = {}
    for row in np.flatnonzero(is_good).tolist():
        numbers = ", ".join(f"{encoded.inputs[row, i]:.4g}" for i in inputs)
        examples.setdefault(f"{_shown(python_value(column[row]))} -> {numbers}", "")
        if len(examples) == EXAMPLES:
            break
    refused = sum(reason.startswith(f"{feature.source}: ") for reason in encoded.reasons.values())
    return _row(
        feature.source, f"feature {feature.name}: {_kind(feature, learnt)}", "; ".join(examples), refused
    )


def _kind(feature: Feature, learnt: Learnt) -> str:
    parts = [feature.kind]
    if feature.kind == HISTORY:
        parts = [meaning(feature)]
    if feature.kind == "category":
        rarity = learnt.categories[feature.name]
        parts.append(f"rarity, {len(rarity.values)} values of their own, others {rarity.other:.4g}")
    if feature.scale == "log":
        parts.append("log scale")
    if feature.use != "score":
        parts.append("not in the score")
    if feature.rules.value == "time":
        parts.append(f"sine and cosine, {feature.timezone}")
    if feature.name in learnt.medians:
        parts.append(f"missing: the median {learnt.medians[feature.name]:.4g}")
    return ", ".join(parts)


def _row(column: str, becomes: str, examples: str, refused: int = 0) -> dict[str, Any]:
    return {"column": column, "becomes": becomes, "examples": examples, "refused": refused}


def _examples(column: pa.Array) -> str:
    return ", ".join(
        dict.fromkeys(
            _shown(value) for value in python_values(column.slice(0, EXAMPLES)) if value is not None
        )
    )


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    text = safe_text("nothing" if value is None else str(value))
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."
