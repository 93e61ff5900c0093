"""Beam's own connector behind WriteBatches, as far as it goes without BigQuery."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path
from typing import ClassVar, NamedTuple

import apache_beam as beam
import orjson
import pyarrow as pa
import pytest
from apache_beam.io.gcp import bigquery as beam_bigquery
from apache_beam.io.gcp import bigquery_tools
from apache_beam.io.gcp.bigquery import WriteResult, WriteToBigQuery
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.subprocess_server import JavaJarServer
from apache_beam.utils.timestamp import Timestamp

import transforms.coder  # noqa: F401  registers the coder of record batches
from transforms.bigquery import WriteBatches
from transforms.bigquery.beam_methods import typed_rows
from transforms.schema import to_bigquery

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("raw", pa.binary()),
        pa.field("values", pa.list_(pa.float64())),
        pa.field("parts", pa.list_(pa.struct([("key", pa.string()), ("value", pa.float64())]))),
    ]
)
T0 = dt.datetime(2026, 3, 1, 12, 0, 0, 5, dt.UTC)
ROWS = [
    {"id": "a", "at": T0, "raw": b"\xff\x00", "values": [1.5], "parts": [{"key": "k", "value": 0.5}]},
    {"id": "b", "at": None, "raw": None, "values": [], "parts": []},
]
BATCH = pa.RecordBatch.from_pylist(ROWS, SCHEMA)


def test_rows_for_the_storage_write_api_have_the_types_of_beams_coders():
    first, second = typed_rows(BATCH)
    assert first == ROWS[0] | {"at": Timestamp.from_utc_datetime(T0)}
    assert second == ROWS[1]


def test_rows_for_the_storage_write_api_survive_beams_row_coder():
    """As far as the way to the storage write API goes without Java: the rows that would be handed over."""
    api_schema = {"fields": [field.to_api_repr() for field in to_bigquery(SCHEMA)]}
    hints = bigquery_tools.get_beam_typehints_from_tableschema(api_schema)
    coder = beam.coders.registry.get_coder(RowTypeConstraint.from_fields(hints))
    rows = [bigquery_tools.beam_row_from_dict(row, api_schema) for row in typed_rows(BATCH)]
    first, second = (coder.decode(coder.encode(row)) for row in rows)
    assert (first.id, first.at, first.raw) == ("a", Timestamp.from_utc_datetime(T0), b"\xff\x00")
    assert (first.values, first.parts[0].key, first.parts[0].value) == ([1.5], "k", 0.5)
    assert tuple(second) == ("b", None, None, [], [])


class RefusedRow(NamedTuple):
    failed_row: beam.Row
    error_message: str


class InPlaceOfJava(beam.PTransform):
    """Records the input of Beam's Java service; the second row comes back as refused."""

    calls: ClassVar[list[dict]] = []

    def __init__(self, **configuration):
        super().__init__()
        self.calls.append(configuration)

    def expand(self, rows):
        refused = rows | beam.Filter(lambda row: row.id == "b")
        answer = refused | beam.Map(RefusedRow, "too late")
        return {beam_bigquery.StorageWriteToBigQuery.FAILED_ROWS_WITH_ERRORS: answer}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_storage_write_api_is_called_as_it_should_and_its_refusals_are_dead_letters(
    monkeypatch, streaming
):
    """Everything but the Java service itself."""
    monkeypatch.setattr(InPlaceOfJava, "calls", [])
    monkeypatch.setattr(beam_bigquery, "SchemaAwareExternalTransform", InPlaceOfJava)
    options = PipelineOptions(streaming=streaming)
    with beam.Pipeline(runner="FnApiRunner", options=options) as p:
        write = WriteBatches("my-project.d.t", SCHEMA, method="storage_write_api", streaming=streaming)
        written = p | beam.Create([BATCH]) | write
        letters = written.dead_letters | beam.FlatMap(
            lambda letters: [
                (orjson.loads(row["payloadBytes"])["id"], row["errorMessage"], row["stage"])
                for row in letters.to_pylist()
            ]
        )
        assert_that(letters, equal_to([("b", "too late", "sink")]))
    (called,) = InPlaceOfJava.calls
    assert called["table"] == "my-project:d.t"
    assert called["create_disposition"] == "CREATE_NEVER"
    assert called["auto_sharding"] is streaming
    assert called["triggering_frequency_seconds"] == (60 if streaming else None)


def test_the_storage_write_api_can_be_constructed():
    jar = JavaJarServer.path_to_beam_jar("sdks:java:io:google-cloud-platform:expansion-service:build")
    local = Path(JavaJarServer.JAR_CACHE) / jar.rpartition("/")[2]
    if shutil.which("java") is None or not local.exists():
        pytest.skip(f"needs Java, and Beam's expansion service in its cache: {local}")
    p = beam.Pipeline(runner="FnApiRunner")
    written = p | beam.Create([BATCH]) | WriteBatches("my-project.d.t", SCHEMA, method="storage_write_api")
    assert written.dead_letters.element_type == pa.RecordBatch


@pytest.mark.parametrize("streaming", [False, True])
def test_file_loads_stage_in_the_temp_location_and_refuse_no_single_rows(monkeypatch, streaming):
    """Up to Beam's own connector, which BigQuery alone can run."""
    writes: list[WriteToBigQuery] = []

    def expand(self: WriteToBigQuery, rows: beam.PCollection) -> WriteResult:
        writes.append(self)
        as_json = {"at": "2026-03-01T12:00:00.000005+00:00", "raw": "/wA="}
        assert_that(rows, equal_to([ROWS[0] | as_json, ROWS[1]]))
        return WriteResult(method=self.method)

    monkeypatch.setattr(WriteToBigQuery, "expand", expand)
    with beam.Pipeline(runner="FnApiRunner") as p:
        write = WriteBatches("my-project.d.t", SCHEMA, method="file_loads", streaming=streaming)
        written = p | beam.Create([BATCH]) | write
        letters = written.dead_letters | beam.FlatMap(lambda letters: letters.to_pylist())
        assert_that(letters, equal_to([]), label="no letters")
    (write,) = writes
    assert write.method == WriteToBigQuery.Method.FILE_LOADS
    assert write.custom_gcs_temp_location is None  # so that Beam takes --temp_location
    assert write.create_disposition == "CREATE_NEVER"
    assert write.triggering_frequency == (60 if streaming else None)
