"""A table that the tests of the BigQuery emulator share."""

import datetime

import pyarrow as pa
from google.cloud.bigquery import SchemaField

UTC = datetime.UTC


FIELDS = [
    SchemaField("id", "STRING", mode="REQUIRED"),
    SchemaField("moment", "TIMESTAMP"),
    SchemaField("parts", "RECORD", mode="REPEATED", fields=[SchemaField("name", "STRING")]),
    SchemaField("extra", "JSON"),
]


ARROW = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("moment", pa.timestamp("us", tz="UTC")),
        pa.field("parts", pa.list_(pa.struct([pa.field("name", pa.string())]))),
    ]
)


def rows_of(client, sql):
    return [tuple(row.values()) for row in client.query(sql).result()]
