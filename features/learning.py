"""Learns from training rows what a spec leaves open: rarities of categories, medians of numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrow import plain
from features.columns import Columns, booleans, category_texts, field_columns, numbers, one_column
from features.declaration import FeatureSpec
from features.kinds import HISTORY, MEDIAN, OWN
from features.learnt import NOTHING, Learnt, Rarity
from features.values import BEYOND_FLOAT32


def learn(spec: FeatureSpec, rows: pa.Table | pa.RecordBatch | Columns) -> Learnt:
    """Learns the open parameters of a spec. The rows are normal transactions of the training part alone.

    >>> spec = FeatureSpec.from_json({"features": [{"name": "tip", "kind": "number", "missing": "median"}]})
    >>> learn(spec, pa.table({"tip": [1.0, None, 3.0]})).medians
    {'tip': 2.0}

    Args:
      spec: the features.
      rows: a table, or columns by the names of `FeatureSpec.message_fields`.

    Raises:
      ColumnError: a column is missing, or has a type that its feature cannot use.
    """
    if spec.is_numeric:
        return NOTHING
    columns = (
        field_columns(rows, spec.message_fields) if isinstance(rows, (pa.Table, pa.RecordBatch)) else rows
    )
    categories: dict[str, Rarity] = {}
    medians: dict[str, float] = {}
    for feature in spec.features:
        if feature.kind == HISTORY:
            continue
        column = one_column(columns[feature.source])
        if feature.kind == "category":
            texts, bad = category_texts(column, feature.source)
            if pa.types.is_dictionary(texts.type):
                texts = texts.dictionary_decode()
            counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(texts).to_pylist()}
            n_missing = counts.pop(None, 0) - int(bad.sum())
            categories[feature.name] = Rarity.of_counts(
                counts, n_missing if feature.missing == OWN else 0, feature.keep
            )
        if feature.missing == MEDIAN:
            read = booleans if feature.kind == "boolean" else numbers
            values, bad = read(plain(column), feature.source)
            values = values[(np.abs(values) < BEYOND_FLOAT32) & ~bad]  # the others are refused
            medians[feature.name] = float(np.median(values)) if len(values) else 0.0
    return Learnt(categories, medians)
