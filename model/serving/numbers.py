"""Decodes lists of numbers without a Python object for each number, which would cost more than the model."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simdjson

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class NumberRows(NamedTuple):
    """A request whose instances are lists of numbers.

    Attributes:
      features: float32 [n, features of the model], n at least 1; infinite where a number is too large.
      parameters: the JSON of this member; empty where the request has none.
    """

    features: npt.NDArray[np.float32]
    parameters: bytes


class NumberDecoder:
    """Decodes `{"instances": [[number, ...], ...], "parameters": {...}}`; for one thread."""

    def __init__(self, width: int) -> None:
        """Makes the decoder for instances of so many numbers."""
        self._width = width
        self._parser: Any = simdjson.Parser()

    def decode(self, body: bytes) -> NumberRows | None:
        """Decodes a request; None where it has another form, whatever that is.

        >>> rows = NumberDecoder(2).decode(b'{"instances": [[12.5, 3], [1, 2]]}')
        >>> rows.features.tolist()
        [[12.5, 3.0], [1.0, 2.0]]
        >>> NumberDecoder(2).decode(b'{"instances": [[12.5, null]]}') is None
        True
        """
        if body.startswith(_BYTE_ORDER_MARK):  # no JSON, and simdjson skips it
            return None
        try:
            return self._rows(body)
        except RuntimeError:  # something still holds a part of an earlier request
            self._parser = simdjson.Parser()
            return None
        except (KeyError, TypeError, ValueError):
            return None

    def _rows(self, body: bytes) -> NumberRows | None:
        request = self._parser.parse(body)
        if not isinstance(request, simdjson.Object):
            return None
        # Of equal members simdjson finds the first, other parsers the last: their number tells.
        parameters = request["parameters"] if len(request) == 2 else None
        # simdjson's stubs know neither the items of an array nor that `mini` is bytes.
        rows: Any = request["instances"]
        are_rows = isinstance(rows, simdjson.Array)
        if len(request) > 2 or not are_rows:
            return None
        if not isinstance(parameters, simdjson.Object | None):
            return None
        text: Any = b"" if parameters is None else parameters.mini
        if text and b"\\u005" in body:  # an escaped bracket is one in `text` and none in the body
            return None
        # The numbers are read without the lists around them. There are no lists inside of the rows when
        # there are no more brackets than these; a string may have some, and is refused below.
        if {len(row) for row in rows} != {self._width} or body.count(b"[") != 1 + len(rows) + text.count(
            b"["
        ):
            return None
        numbers = np.frombuffer(rows.as_buffer(of_type="d"))
        with np.errstate(over="ignore"):
            return NumberRows(numbers.astype(np.float32).reshape(-1, self._width), text)
