"""Thresholds that travel with scores, in the metadata of the schema: those of the model that gave them.

A job may score with one model after the other. The metadata goes through slices, selections of rows, and the
coder; a sink drops it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Final

import pyarrow as pa

_KEY: Final = b"anomaly.thresholds"


def with_thresholds(schema: pa.Schema, thresholds: Mapping[str, float]) -> pa.Schema:
    """Returns a schema whose batches carry thresholds.

    >>> schema = with_thresholds(pa.schema([("anomaly_score", pa.float64())]), {"medium": 2.5})
    >>> thresholds_of(pa.RecordBatch.from_pylist([], schema=schema))
    {'medium': 2.5}
    """
    return schema.with_metadata({_KEY: json.dumps(dict(thresholds))})


def thresholds_of(batch: pa.RecordBatch) -> Mapping[str, float]:
    """Returns the thresholds of a batch of scores.

    Raises:
      ValueError: it carries none.
    """
    text = (batch.schema.metadata or {}).get(_KEY)
    if text is None:
        raise ValueError("scores: expected a batch that carries its thresholds, got one without")
    return _parsed(text)


@functools.lru_cache(maxsize=16)
def _parsed(text: bytes) -> Mapping[str, float]:
    thresholds: dict[str, float] = json.loads(text)
    return thresholds
