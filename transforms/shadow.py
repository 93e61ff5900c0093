"""A second model that scores beside the first, for comparison alone: its failures cost no row."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from model import inference
from model.artifact import Artifact
from model.few_rows import FewRows
from model.live import Follower, Live
from model.outputs import ANOMALY_SCORE
from model.thresholds import codes_of
from transforms import metrics
from transforms.scores import ScoreRules, repeated, severities

_LOG: Final = logging.getLogger(__name__)
RETRY_SECONDS: Final = 60
"""Between two looks for a shadow that could not be loaded, without refresh: an outage at the start passes."""

Matrix = npt.NDArray[np.float32]


class Model(Protocol):
    """A loaded model of the same features as the first."""

    module: torch.jit.ScriptModule
    rules: ScoreRules
    few: FewRows | None

    def inputs(self, batch: pa.RecordBatch, features: Matrix | None = None) -> Matrix:
        """The inputs of the model for a TRANSACTIONS batch, whose features may be at hand."""


class Shadow:
    """The second model of a worker.

    Args:
      uri: of its artifact.
      load: makes the model of an artifact.
      refresh_seconds: between two looks for a new one; 0 keeps the first that can be loaded.
    """

    def __init__(self, uri: str, load: Callable[[Artifact], Any], refresh_seconds: float) -> None:
        self._uri = uri
        self._failures = 0
        self._live: Live[Model | None] = Live(None)
        follower = Follower(uri, load, "", "model of --shadow_model")
        self._live.take(follower.look())
        if refresh_seconds or self._live.current is None:
            self._live.follow(follower, refresh_seconds or RETRY_SECONDS, once=not refresh_seconds)

    def columns(self, batch: pa.RecordBatch, features: Matrix | None = None) -> list[pa.Array] | None:
        """Scores a TRANSACTIONS batch into the columns of SHADOW_FIELDS; None where that fails.

        Args:
          batch: the rows.
          features: those of the batch, if they are at hand.
        """
        model = self._live.current
        if model is None:
            metrics.add({metrics.SHADOW_UNSCORED: batch.num_rows})
            return None
        try:
            return _columns(model, batch, features)
        except Exception as error:
            self._fail(error)
            metrics.add({metrics.SHADOW_UNSCORED: batch.num_rows})
            return None

    def _fail(self, error: Exception) -> None:
        if not self._failures:  # the counter tells of the others
            _LOG.error("--shadow_model=%s does not score: %r", self._uri, error)
        self._failures += 1


def _columns(model: Model, batch: pa.RecordBatch, features: Matrix | None) -> list[pa.Array]:
    inputs = model.inputs(batch, features)
    outputs = inference.outputs(model.module, inputs, [ANOMALY_SCORE], model.few)
    scores = outputs[ANOMALY_SCORE].astype(np.float64)
    rules, n = model.rules, len(scores)
    codes, finite = codes_of(scores, rules.steps), np.isfinite(scores)
    columns = [
        pa.array(scores),
        severities(codes if np.count_nonzero(codes) else None, n),
        repeated(rules.version, n),
    ]
    if not finite.all():
        columns[:2] = [pc.if_else(pa.array(finite), column, None) for column in columns[:2]]
    return columns
