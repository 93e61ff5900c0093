from __future__ import annotations

import datetime as dt

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bigquery import table_path
from transforms.bigquery.rows import (
    Refused,
    SchemaMismatchError,
    conform,
    oversized,
    refused_rows,
    serialized_size,
    split_requests,
    without_rows,
)
from transforms.schema import ALERTS, ERROR_RECORDS, SCORES, SCORES_FULL

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False, metadata={"description": "the id"}),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("values", pa.list_(pa.float64())),
    ]
)


class TestConform:
    def test_columns_come_in_order_and_type_of_the_table(self):
        rows = pa.RecordBatch.from_arrays(
            [
                pa.array([[1.5], None], pa.list_(pa.float32())),
                pa.array(["ignored", "too"]),
                pa.array([0, 1_000], pa.timestamp("ms", tz="UTC")),
                pa.array(["a", "b"]).dictionary_encode(),
            ],
            names=["values", "more", "at", "id"],
        )
        conformed = conform(rows, SCHEMA)
        assert conformed.schema.names == ["id", "at", "values"]
        assert conformed.schema.types == SCHEMA.types
        assert conformed.to_pylist() == [
            {"id": "a", "at": dt.datetime(1970, 1, 1, tzinfo=dt.UTC), "values": [1.5]},
            {"id": "b", "at": dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC), "values": []},
        ]

    def test_descriptions_are_not_sent(self):
        rows = pa.RecordBatch.from_pylist([{"id": "a", "at": None, "values": [1.0]}], SCHEMA)
        assert all(field.metadata is None for field in conform(rows, SCHEMA).schema)

    @pytest.mark.parametrize("schema", [SCORES, SCORES_FULL, ALERTS, ERROR_RECORDS])
    def test_the_tables_of_the_project_use_only_types_that_the_service_takes(self, schema):
        """The list of docs.cloud.google.com/bigquery/docs/supported-data-types, for Arrow."""
        taken = {
            pa.bool_(),
            pa.string(),
            pa.binary(),
            pa.int64(),
            pa.float32(),
            pa.float64(),
            pa.timestamp("us", tz="UTC"),
        }

        def scalars(kind: pa.DataType):
            if pa.types.is_struct(kind):
                for member in kind:
                    yield from scalars(member.type)
            elif pa.types.is_list(kind):
                yield from scalars(kind.value_type)
            else:
                yield kind

        assert {kind for field in schema for kind in scalars(field.type)} <= taken

    def test_a_missing_column_is_named(self):
        with pytest.raises(SchemaMismatchError, match="Column 'at' is missing from the rows; they have"):
            conform(pa.RecordBatch.from_pylist([{"id": "a", "values": []}]), SCHEMA)

    @pytest.mark.parametrize(
        ("column", "values"),
        [("at", pa.array(["no time"])), ("values", pa.array([1.0])), ("values", pa.array([["x"]]))],
    )
    def test_a_column_that_cannot_be_converted_is_named(self, column, values):
        columns = {"id": pa.array(["a"]), "at": pa.array([0]), "values": pa.array([[1.0]]), column: values}
        with pytest.raises(SchemaMismatchError, match=f"Column '{column}'"):
            conform(pa.RecordBatch.from_arrays(list(columns.values()), list(columns)), SCHEMA)


def test_rows_that_the_service_named_are_taken_out():
    rows = pa.RecordBatch.from_pylist([{"n": i} for i in range(5)])
    checked = without_rows(rows, {3: "three", 0: "zero"})
    assert checked.accepted.to_pydict() == {"n": [1, 2, 4]}
    assert checked.refused.rows.to_pydict() == {"n": [0, 3]}
    assert checked.refused.reasons == ["zero", "three"]


@pytest.mark.parametrize("errors", [{}, {5: "beyond"}, {-1: "before"}])
def test_row_numbers_outside_the_request_are_an_error(errors):
    with pytest.raises(ValueError, match="in a request of 5 rows"):
        without_rows(pa.RecordBatch.from_pylist([{"n": i} for i in range(5)]), errors)


@given(
    sizes=st.lists(st.integers(0, 3_000), max_size=40),
    max_bytes=st.integers(500, 10_000),
    max_rows=st.integers(1, 50),
)
@settings(deadline=None)
def test_requests_hold_every_row_once_and_stay_below_the_limits(sizes, max_bytes, max_rows):
    names = [f"{i}" + "x" * size for i, size in enumerate(sizes)]
    batch = pa.RecordBatch.from_arrays([pa.array(names, pa.string())], ["name"])
    parts = list(split_requests(batch, max_bytes, max_rows))
    assert [name for part in parts for name in part.column(0).to_pylist()] == names
    for part in parts:
        assert 1 <= part.num_rows <= max_rows
        assert part.num_rows == 1 or serialized_size(part) <= max_bytes
        assert (oversized(part, max_bytes) is not None) == (part.serialize().size > max_bytes)


def test_a_refused_row_is_a_dead_letter_with_the_row_as_json():
    row = {
        "id": "a",
        "at": dt.datetime(2026, 3, 1, 12, 0, 0, 5, dt.UTC),
        "values": [1.0, float("nan"), float("-inf")],
    }
    refused = Refused(pa.RecordBatch.from_pylist([row], SCHEMA), ["id: too long"])
    (letter,) = refused_rows(refused, "p.d.t", timestamp=0).to_pylist()
    assert orjson.loads(letter.pop("payloadString")) == {
        "id": "a",
        "at": "2026-03-01T12:00:00.000005+00:00",
        "values": [1.0, "NaN", "-Infinity"],
    }
    assert orjson.loads(letter.pop("payloadBytes"))["id"] == "a"
    assert letter == {
        "timestamp": dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
        "attributes": [{"key": "table", "value": "p.d.t"}],
        "errorMessage": "id: too long",
        "stacktrace": None,
        "stage": "sink",
        "attempt": 0,
    }


@pytest.mark.parametrize(
    ("table", "project", "path"),
    [
        ("p.d.t", None, "projects/p/datasets/d/tables/t"),
        ("p:d.t", None, "projects/p/datasets/d/tables/t"),
        ("d.t", "q", "projects/q/datasets/d/tables/t"),
        ("example.com:p.d.t", None, "projects/example.com:p/datasets/d/tables/t"),
    ],
)
def test_table_names(table, project, path):
    assert table_path(table, project) == path


@pytest.mark.parametrize("table", ["t", "d.t", "a.b.c.d", ""])
def test_an_incomplete_table_name_is_an_error_that_shows_the_form(table):
    with pytest.raises(ValueError, match=r"expected PROJECT\.DATASET\.TABLE"):
        table_path(table)
