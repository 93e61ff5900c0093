"""The model in a server process: features in, the JSON body of the answer out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import orjson
import torch

from model.artifact import Artifact, Manifest
from model.features import N_FEATURES
from model.network import SCORE_FIELD
from model.serving.request import CONTRIBUTIONS, DEFAULT_FIELDS

_SCORE_FIELDS = frozenset((SCORE_FIELD, "encoded", CONTRIBUTIONS))
_WARM_UP_ROWS = (1, 1, 2, 128, 128)


def use_one_thread() -> None:
    """Keeps torch to the calling thread; call it in every thread that runs the model.

    One process per core serves, so more threads in each would only compete with the others. OpenMP keeps the
    number by thread: set in the loader alone, it leaves the thread that serves with one for every core.
    """
    torch.set_num_threads(1)


class Predictor:
    """A verified model, ready to answer.

    Attributes:
      manifest: what the artifact says of the model.
    """

    def __init__(self, artifact: Artifact) -> None:
        """Loads the model of a verified artifact and runs it a few times, since the first calls compile."""
        use_one_thread()
        self.manifest: Manifest = artifact.manifest
        self._module = artifact.load_model()
        for n in _WARM_UP_ROWS:
            rows = np.zeros((n, N_FEATURES), np.float32)
            self.outputs(rows, DEFAULT_FIELDS)
            self.outputs(rows, ("normalized_MAE",))

    def outputs(
        self, features: npt.NDArray[np.float32], fields: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The fields by name, in their order; arrays of n rows for raw features [n, 30]."""
        rows = torch.from_numpy(features)
        named: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            if not _SCORE_FIELDS.issuperset(fields):
                named.update(self._module(rows))
            if not named or CONTRIBUTIONS in fields:
                score, encoded, contributions = self._module.score(rows)
                named.update({SCORE_FIELD: score, "encoded": encoded, CONTRIBUTIONS: contributions})
        return {name: named[name].numpy() for name in fields}

    def answer(self, features: npt.NDArray[np.float32], fields: Sequence[str]) -> bytes:
        """The JSON body for raw features [n, 30]: `predictions`, and `metadata` with the model's version.

        Raises:
          FloatingPointError: the model gave a number that is not finite.
        """
        outputs = self.outputs(features, fields)
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise FloatingPointError(f"the model gave {name} that is not finite")
        return encode_answer(outputs, self.manifest.model_version)


def encode_answer(outputs: Mapping[str, npt.NDArray[np.float32]], model_version: str) -> bytes:
    """`{"predictions": [{field: value or list, ...}, ...], "metadata": {"model_version": ...}}`.

    orjson writes float32 in the fewest digits that read back to the same float32: half the bytes of the same
    values as float64. `metadata` is the member of Vertex AI's PredictResponse for what a model says of a
    whole request.
    """
    names = tuple(outputs)
    predictions = [dict(zip(names, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    body = {"predictions": predictions, "metadata": {"model_version": model_version}}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
