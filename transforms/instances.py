"""Transactions as instances of a request to a server: the raw values, in the order of the feature spec."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from features.declaration import FeatureSpec
from transforms.scores import feature_matrix

_PLAIN: Final = {"number": 0.0, "boolean": False, "category": "unknown"}
_MICROS: Final = {"seconds": 1e6, "milliseconds": 1e3}
_PLAIN_TIME: Final = 1_700_000_000_000_000


def instances(transactions: pa.RecordBatch, spec: FeatureSpec) -> Any:
    """Returns the instances of a TRANSACTIONS batch.

    Returns:
      A matrix of float32 where all features are numbers, otherwise lists of values in the order of
      `FeatureSpec.fields`; None stands for a missing one.
    """
    if "inputs" not in transactions.schema.names:
        return np.ascontiguousarray(feature_matrix(transactions))
    inputs = transactions.column("inputs")
    raw = dict(zip([field.name for field in inputs.type], inputs.flatten(), strict=True))
    if spec.roles.event_time in spec.fields:
        raw[spec.roles.event_time] = _times(transactions.column("event_time"), spec.roles.time_format)
    columns = [raw[name].to_pylist() for name in spec.fields]
    return [list(row) for row in zip(*columns, strict=True)]


def plain_instances(spec: FeatureSpec) -> Any:
    """Returns one instance that any server of the spec takes, to ask whether it is there."""
    if spec.is_numeric:
        return np.zeros((1, len(spec.fields)), np.float32)
    time = _times(pa.array([_PLAIN_TIME]).cast(pa.timestamp("us", tz="UTC")), spec.roles.time_format)
    return [[_PLAIN.get(value, time[0].as_py()) for value in spec.field_values.values()]]


def _times(column: pa.Array, form: str) -> pa.Array:
    """Event times in the form that the spec declares."""
    if form in _MICROS:
        return pa.array(column.cast(pa.int64()).to_numpy() / _MICROS[form])
    return pa.array([time.isoformat() for time in column.to_pylist()], pa.string())
