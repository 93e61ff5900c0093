"""Beam's own connector behind WriteBatches. The tests that run it need the local stack's adaptation of it."""

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
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.subprocess_server import JavaJarServer
from apache_beam.utils.timestamp import Timestamp
from google.cloud import bigquery

import transforms.coder  # noqa: F401  registers the coder of record batches
from benchmarks.beam_connectors import beam_connectors
from transforms import metrics
from transforms.bigquery import WriteBatches
from transforms.bigquery.beam_methods import failed_row, typed_rows
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


@pytest.mark.parametrize(
    ("failed", "row", "reason"),
    [
        (
            ("p:d.t", {"id": "a"}, [{"reason": "invalid", "location": "at", "message": "no time"}]),
            {"id": "a"},
            "at: no time",
        ),
        (("p:d.t", {"id": "a"}, [{"reason": "invalid"}, {"message": "x"}]), {"id": "a"}, "invalid; x"),
        (("p:d.t", {"id": "a"}, []), {"id": "a"}, "refused without a reason"),
        ({"failed_row": {"id": "a"}, "error_message": "too large"}, {"id": "a"}, "too large"),
    ],
)
def test_row_and_reason_of_a_failed_row(failed, row, reason):
    assert failed_row(failed) == (row, reason)


class RefusedRow(NamedTuple):
    failed_row: beam.Row
    error_message: str


class InPlaceOfJava(beam.PTransform):
    """What Beam hands to its Java service, recorded; the second row comes back as refused."""

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


@pytest.fixture
def connectors(bigquery_emulator, gcs_root):
    with beam_connectors(bigquery_emulator, gcs_root):
        yield


@pytest.fixture
def table(bigquery_client, dataset) -> str:
    name = f"{bigquery_client.project}.{dataset}.t"
    bigquery_client.create_table(bigquery.Table(name, to_bigquery(SCHEMA)))
    return name


def pipeline(project: str) -> beam.Pipeline:
    options = PipelineOptions([f"--project={project}", "--temp_location=gs://local/tmp"])
    return beam.Pipeline(runner="FnApiRunner", options=options)


def stored(client: bigquery.Client, table: str) -> list[dict]:
    return [dict(row.items()) for row in client.query(f"SELECT * FROM `{table}` ORDER BY id").result()]


@pytest.mark.integration
class TestOnTheEmulator:
    @pytest.mark.parametrize("method", ["streaming_inserts", "file_loads"])
    def test_rows_arrive_as_they_were(self, connectors, bigquery_client, table, method):
        with pipeline(bigquery_client.project) as p:
            write = WriteBatches(table, SCHEMA, method=method, temp_location="gs://local/tmp")
            written = p | beam.Create([BATCH]) | write
            rows = written.dead_letters | beam.FlatMap(lambda letters: letters.to_pylist())
            assert_that(rows, equal_to([]))
        assert stored(bigquery_client, table) == ROWS

    def test_a_row_that_streaming_inserts_refuse_is_a_dead_letter(self, connectors, bigquery_client, table):
        nullable = pa.schema([field.with_nullable(True) for field in SCHEMA])
        bad = pa.RecordBatch.from_pylist([*ROWS, ROWS[0] | {"id": None}], nullable)
        p = pipeline(bigquery_client.project)
        written = p | beam.Create([bad]) | WriteBatches(table, nullable, method="streaming_inserts")
        letters = written.dead_letters | beam.FlatMap(
            lambda letters: [
                (orjson.loads(row["payloadBytes"])["at"], row["stage"], row["attributes"])
                for row in letters.to_pylist()
            ]
        )
        where = [{"key": "table", "value": table}]
        assert_that(letters, equal_to([("2026-03-01T12:00:00.000005+00:00", "sink", where)]))
        result = p.run()
        result.wait_until_finish()
        assert metrics.totals(result) == {"t.rows_refused": 1}
        assert stored(bigquery_client, table) == ROWS
