"""The quick way of lists of numbers: it takes what the parser of JSON would, to the bit, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.serving.numbers import NumberDecoder
from tests.model.serving.artifacts import transactions

decode = NumberDecoder(2).decode


@given(st.lists(st.tuples(*[st.floats(allow_nan=False) | st.integers(-(2**63), 2**64 - 1)] * 2), min_size=1))
def test_numbers_are_those_of_a_parser_of_json(rows):
    with np.errstate(over="ignore"):
        expected = np.array([[float(value) for value in row] for row in rows], np.float32)
    infinite = any(isinstance(value, float) and abs(value) == float("inf") for row in rows for value in row)
    decoded = decode(json.dumps({"instances": rows}).encode())
    if infinite:
        assert decoded is None
    else:
        assert decoded is not None
        assert decoded.features.dtype == np.float32
        assert np.array_equal(decoded.features, expected)


def test_a_request_of_many_rows_has_its_parameters():
    rows = transactions(500)
    body = orjson.dumps(
        {"parameters": {"fields": ["a", "b[["]}, "instances": rows}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    decoded = NumberDecoder(30).decode(body)
    assert decoded is not None
    assert np.array_equal(decoded.features, rows)
    assert orjson.loads(decoded.parameters) == {"fields": ["a", "b[["]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[[1, 2]]",
        b'{"instances": []}',
        b'{"instances": {"a": [1, 2]}}',
        b'{"instances": [[1, 2], [3]]}',
        b'{"instances": [[1, 2], 3]}',
        b'{"instances": [[1, null]]}',
        b'{"instances": [[1, true]]}',
        b'{"instances": [[1, "2"]]}',
        b'{"instances": [[1, 1e999]]}',
        b'{"instances": [[1, 2]]} 3',
        b'{"instances": [[1, 2]], "x": 1}',
        b'{"instances": [[1, 2]], "instances": [[3, 4]]}',
        b'{"instances": [[1, 2]], "instances": [[3, 4]], "parameters": {}}',
        b'{"instances": [[1, 2]], "parameters": 7}',
        b'{"instances": [[1, 2]], "parameters": {"\xff": 1}}',
        b'\xef\xbb\xbf{"instances": [[1, 2]]}',
        # Lists inside of rows: as many numbers in all, but not in rows.
        b'{"instances": [[[1], [2]]]}',
        b'{"instances": [[[1, 2], []]]}',
        b'{"instances": [[[1, 2, 3], 4], []]}',
        b'{"instances": [{"[": 1, "b": 2}]}',
        # The same, with as many escaped brackets elsewhere.
        b'{"instances": [[[1], 2]], "parameters": {"x": "\\u005b"}}',
        b'{"instances": [[[1], 2]], "parameters": {"\\u005B": 1}}',
        b'{"instances": [[[1, 2], 3], [[], 4]], "parameters": {"x": ["\\u005b"]}}',
    ],
)
def test_anything_else_is_left_to_others(body):
    assert decode(body) is None
    assert decode(b'{"instances": [[1, 2]], "parameters": null}') is not None  # and does no harm
