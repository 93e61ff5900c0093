"""The model in a server process: features in, the JSON body of the answer out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt
import orjson

from features.rows import RowEncoder
from model import inference
from model.artifact import Artifact, Manifest
from model.few_rows import few_rows
from model.inference import use_one_thread
from model.outputs import ANOMALY_SCORE, ANSWER_FIELDS, DEFAULT_FIELDS
from model.serving.own_features import parser_of
from model.serving.request import SEVERITY, THRESHOLDS, PredictRequest
from model.thresholds import SEVERITIES, severity_codes

_NAME_BYTES: Final = 4  # quotes, colon, comma or bracket
_NUMBER_BYTES: Final = 14  # a float32 in its fewest digits, with a comma; 12 on average
_SEVERITY_TEXTS: Final = tuple(orjson.dumps(name) for name in SEVERITIES)

Floats = npt.NDArray[np.float32]


class Predictor:
    """A verified model, ready to answer.

    Attributes:
      manifest: of the artifact.
      widths: how many numbers each output has in a row; None for a single one.
      parse: decodes and checks a request to this model.
      encoder: encodes single transactions, such as those of tensors.
    """

    def __init__(self, artifact: Artifact) -> None:
        """Loads the model of a verified artifact and warms it up."""
        use_one_thread()
        self.manifest: Manifest = artifact.manifest
        spec = self.manifest.spec
        self._module = artifact.load_model()
        self._few = few_rows(self._module)
        for fields in (DEFAULT_FIELDS, ANSWER_FIELDS):
            inference.warm_up(self._module, fields, len(spec.inputs))
        self.parse = parser_of(spec, self.manifest.learnt).parse
        self.encoder = RowEncoder(spec, self.manifest.learnt)
        zeros = np.zeros((1, len(spec.inputs)), np.float32)
        self.widths: Mapping[str, int | None] = {
            name: values.shape[1] if values.ndim > 1 else None
            for name, values in self.outputs(zeros, ANSWER_FIELDS).items()
        }
        self._metadata = {
            asked: orjson.dumps({"model_version": self.manifest.model_version, **more})
            for asked, more in ((False, {}), (True, {THRESHOLDS: dict(self.manifest.thresholds)}))
        }

    def outputs(self, features: Floats, fields: Sequence[str]) -> dict[str, Floats]:
        """The fields by name, in their order; arrays of n rows for raw features [n, features].

        Raises:
          FloatingPointError: the model gave a number that is not finite.
        """
        outputs = inference.outputs(self._module, features, fields, self._few)
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise FloatingPointError(f"the model gave {name} that is not finite")
        return outputs

    def row_bytes(self, fields: Iterable[str]) -> int:
        """Estimates the bytes of one row's prediction in JSON, on the high side."""
        return 2 + sum(len(f) + _NAME_BYTES + _NUMBER_BYTES * (self.widths.get(f) or 1) for f in fields)

    def answer(self, request: PredictRequest) -> tuple[bytes, Floats]:
        """The JSON body of `predictions` and `metadata` for a request, and the scores of its rows.

        Raises:
          FloatingPointError: the model gave a number that is not finite.
        """
        fields = request.fields
        # The score is always computed: it is an output of both methods of the model, and metrics show it.
        names = [name for name in fields if name in self.widths]
        outputs = self.outputs(
            request.features, [*names, *(() if ANOMALY_SCORE in names else (ANOMALY_SCORE,))]
        )
        scores = outputs[ANOMALY_SCORE]
        columns = {name: texts(outputs[name]) for name in names}
        if SEVERITY in fields:
            codes = severity_codes(scores, self.manifest.thresholds).tolist()
            columns[SEVERITY] = [_SEVERITY_TEXTS[code] for code in codes]
        if request.own_fields is None:
            rows = self._objects(fields, columns, len(scores))
        else:
            rows = b",".join(
                self._objects(own, {name: columns[name][i : i + 1] for name in own if name in columns}, 1)
                for i, own in enumerate(request.own_fields)
            )
        metadata = self._metadata[THRESHOLDS in fields]
        return b'{"predictions":[%b],"metadata":%b}' % (rows, metadata), scores

    def _objects(self, fields: Sequence[str], texts: Mapping[str, Sequence[bytes]], n: int) -> bytes:
        """Joins columns of texts to n JSON objects with these of the fields, and commas between them."""
        names = [name for name in fields if name in texts]
        columns = [texts[name] for name in names]
        members = (
            b'"%b":%b' % (name.encode(), b"[%b]" if self.widths.get(name) else b"%b") for name in names
        )
        template = b"{%b}" % b",".join(members)
        return b",".join([template] * n) % tuple(chain.from_iterable(zip(*columns, strict=True)))


def texts(values: Floats) -> list[bytes]:
    """Writes an output as JSON, a text a row, in the fewest digits that read back to the same float32.

    That is half the bytes of the same values as float64. Rows of several numbers are without their brackets.

    >>> texts(np.array([0.1, 2.25], np.float32)), texts(np.array([[1, 0.1], [2, 3]], np.float32))
    ([b'0.1', b'2.25'], [b'1.0,0.1', b'2.0,3.0'])
    """
    text = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[1:-1].split(b",") if values.ndim == 1 else text[2:-2].split(b"],[")
