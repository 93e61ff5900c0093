"""The model in a server process: features in, the JSON body of the answer out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import orjson

from model import inference
from model.artifact import Artifact, Manifest
from model.inference import use_one_thread
from model.outputs import ANSWER_FIELDS, DEFAULT_FIELDS


class Predictor:
    """A verified model, ready to answer.

    Attributes:
      manifest: of the artifact.
    """

    def __init__(self, artifact: Artifact) -> None:
        """Loads the model of a verified artifact and warms it up."""
        use_one_thread()
        self.manifest: Manifest = artifact.manifest
        self._module = artifact.load_model()
        for fields in (DEFAULT_FIELDS, ANSWER_FIELDS):
            inference.warm_up(self._module, fields, len(self.manifest.spec.inputs))

    def outputs(
        self, features: npt.NDArray[np.float32], fields: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The fields by name, in their order; arrays of n rows for raw features [n, 30]."""
        return inference.outputs(self._module, features, fields)

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
    """Encodes outputs as the body of an answer.

    orjson writes float32 in the fewest digits that read back to the same float32: half the bytes of the same
    values as float64. `metadata` is the member of Vertex AI's PredictResponse for what a model says of a
    whole request.

    >>> encode_answer({"anomaly_score": np.array([0.5, 2.25], np.float32)}, "1")
    b'{"predictions":[{"anomaly_score":0.5},{"anomaly_score":2.25}],"metadata":{"model_version":"1"}}'
    """
    names = tuple(outputs)
    predictions = [dict(zip(names, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    body = {"predictions": predictions, "metadata": {"model_version": model_version}}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
