"""Encodes again the inputs that depend on a training: rarities of categories, medians of missing values.

Parse encodes by the model of the launch. A model that a job takes over later may have learnt other numbers
from other rows; the raw values, which travel beside the inputs, are then encoded by its own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns import ColumnEncoder
from features.declaration import FeatureSpec
from features.kinds import MEDIAN
from features.learnt import Learnt
from transforms.scores import feature_matrix


class LearntInputs:
    """Makes the inputs of a model of the same features that learnt other numbers of them.

    Args:
      spec: the features.
      learnt: from the manifest of the model.
    """

    def __init__(self, spec: FeatureSpec, learnt: Learnt) -> None:
        chosen = [feature.kind == "category" or feature.missing == MEDIAN for feature in spec.features]
        features = [feature for feature, is_chosen in zip(spec.features, chosen, strict=True) if is_chosen]
        self._positions = [position for position, group in enumerate(spec.groups) if chosen[group]]
        self._encoder = ColumnEncoder(dataclasses.replace(spec, features=tuple(features)), learnt)

    def __call__(self, transactions: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Returns the inputs of a TRANSACTIONS batch, float32 [n, inputs]."""
        raw = transactions.column("inputs")
        columns = dict(zip([field.name for field in raw.type], raw.flatten(), strict=True))
        inputs = feature_matrix(transactions).copy()
        inputs[:, self._positions] = self._encoder.encode(columns).inputs
        return inputs
