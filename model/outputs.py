"""Names of the model's outputs. It imports nothing, so that every room can take the names from here.

`model.handler` repeats them: the archive of TorchServe holds no other module than that and `model.features`.
"""

from __future__ import annotations

from typing import Final

ANOMALY_SCORE: Final = "anomaly_score"
ENCODED: Final = "encoded"
CONTRIBUTIONS: Final = "contributions"

SCALES: Final = ("normalized", "denormalized")
VECTOR_OUTPUTS: Final = ("reconstruction", "reconstruction_errors")
"""Per scale, one value a feature."""
SCALAR_OUTPUTS: Final = ("MAE", "RMSE", "MSE", "MSLE")
"""Per scale, one value a row."""

FIELDS: Final[tuple[str, ...]] = (
    ENCODED,
    *(f"{scale}_{name}" for scale in SCALES for name in (*VECTOR_OUTPUTS, *SCALAR_OUTPUTS)),
    ANOMALY_SCORE,
)
"""The 14 outputs of the network's `forward`, in its order."""
SCORE_FIELDS: Final[tuple[str, ...]] = (ANOMALY_SCORE, ENCODED, CONTRIBUTIONS)
"""The outputs of the network's `score`, in its order."""
ANSWER_FIELDS: Final[tuple[str, ...]] = (*FIELDS, CONTRIBUTIONS)
"""All outputs: what a request to a server may name."""
DEFAULT_FIELDS: Final[tuple[str, ...]] = (ANOMALY_SCORE, ENCODED)
"""The fields of an answer where a request names none."""
