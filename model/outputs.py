"""Names and sizes of the model's outputs. Light, so that every package can take them from here.

`model.handler` repeats their names: the archive of TorchServe does not hold this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

ANOMALY_SCORE: Final = "anomaly_score"
ENCODED: Final = "encoded"
ENCODED_SIZE: Final = 4
"""Width of the encoded form of a transaction, the narrowest layer of the network."""
CONTRIBUTIONS: Final = "contributions"

SCALES: Final = ("normalized", "denormalized")
VECTOR_OUTPUTS: Final = ("reconstruction", "reconstruction_errors")
"""Per scale, one value an input."""
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


def encoded_size(n_inputs: int) -> int:
    """Returns the width of the encoded form: ENCODED_SIZE, or a quarter of the inputs where these are few."""
    return max(1, min(ENCODED_SIZE, n_inputs // 4))


def width(name: str, n_inputs: int) -> int | None:
    """Returns how many numbers a field of a model with so many inputs has; None for a single one.

    >>> width("contributions", 30), width("encoded", 30), width("anomaly_score", 30)
    (30, 4, None)
    """
    if name == ENCODED:
        return encoded_size(n_inputs)
    return n_inputs if name == CONTRIBUTIONS or name.endswith(VECTOR_OUTPUTS) else None


def answer_bytes(fields: Iterable[str], n_inputs: int) -> int:
    """Estimates the bytes of one row's prediction in JSON, on the high side.

    >>> answer_bytes(ANSWER_FIELDS, 30)
    2617
    """
    return sum(len(name) + _NAME_BYTES + _NUMBER_BYTES * (width(name, n_inputs) or 1) for name in fields)
