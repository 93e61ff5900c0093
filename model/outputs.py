"""Names and sizes of the model's outputs. Light, so that every package can take them from here.

`model.handler` repeats them: the archive of TorchServe holds no other module than that and `model.features`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from model.features import ENCODED_SIZE, N_FEATURES

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

_NAME_BYTES: Final = 4  # quotes, colon, comma or bracket
_NUMBER_BYTES: Final = 14  # a float32 in its fewest digits, with a comma and perhaps a blank; 12 on average


def width(name: str) -> int | None:
    """Returns how many numbers a field has; None for a single one.

    >>> width("contributions"), width("anomaly_score")
    (30, None)
    """
    if name == ENCODED:
        return ENCODED_SIZE
    return N_FEATURES if name == CONTRIBUTIONS or name.endswith(VECTOR_OUTPUTS) else None


def answer_bytes(fields: Iterable[str]) -> int:
    """Estimates the bytes of one row's prediction in JSON, on the high side: 2.6 kB with every field."""
    return sum(len(name) + _NAME_BYTES + _NUMBER_BYTES * (width(name) or 1) for name in fields)
