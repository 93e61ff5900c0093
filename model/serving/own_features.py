"""Decodes prediction requests to a model of any features: categories, flags and times beside numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.declaration import FeatureSpec
from features.learnt import Learnt
from features.rows import RowEncoder
from model.serving.request import BadRequestError, PredictRequest, RequestParser


class SpecParser(RequestParser):
    """Decodes and checks the requests to one model, by its feature spec.

    An instance is a list of the values of the spec's fields, or an object with these keys.
    """

    def __init__(self, spec: FeatureSpec, learnt: Learnt) -> None:
        super().__init__(spec.fields)
        self._encoder = RowEncoder(spec, learnt)

    def parse(self, body: bytes) -> PredictRequest:
        """Decodes and checks a request body; see `RequestParser.parse`."""
        return self._parse_mixed(body)

    def _matrix(self, rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
        return np.array(rows, np.float32)

    def _row(self, instance: Any, index: int) -> list[float]:
        if isinstance(instance, dict) and "features" in instance and not self._keys & instance.keys():
            raise BadRequestError("is within an instance that has none of the keys", index, "features")
        inputs, reasons = self._encoder.encode([instance])
        if reasons:
            field, _, reason = reasons[0].partition(": ")
            raise BadRequestError(reason, index, field)
        row: list[float] = inputs[0].tolist()
        return row


def parser_of(spec: FeatureSpec, learnt: Learnt) -> RequestParser:
    """Makes the parser of a model: the fast one where its features are plain numbers at the top."""
    is_flat = not any("." in field for field in spec.fields)
    return RequestParser(spec.fields) if spec.is_numeric and is_flat else SpecParser(spec, learnt)
