"""Columns that are made of buffers: equal to Arrow's own, whatever the number of rows."""

from __future__ import annotations

import pyarrow as pa
import pytest

from transforms.plain_columns import no_texts, one_time, texts
from transforms.schema import SCORES

TIME = SCORES.field("scored_at").type


@pytest.mark.parametrize(
    "values",
    [
        [],
        ["a"],
        ["ä", "\U0001f4b3", "x" * 256],
        [""],
        ["a", "", "b"],
        ["a", None],
        [None],
        ["é"] * 40,
        [None] * 40,
    ],
    ids=lambda values: f"{len(values)}-{values[:2]}",
)
def test_a_column_of_texts_is_the_one_that_arrow_makes(values):
    column = texts(values)
    column.validate(full=True)
    assert column.equals(pa.array(values, pa.string()))
    assert column.null_count == values.count(None)


def test_columns_of_one_value():
    for rows in (0, 1, 3):
        column = one_time(1_764_547_200_000_001, rows, TIME)
        column.validate(full=True)
        assert column.equals(pa.array([1_764_547_200_000_001] * rows, TIME))
        assert no_texts(rows).equals(pa.nulls(rows, pa.string()))
    assert one_time(-1, 1, TIME).cast(pa.int64()).to_pylist() == [-1]
