"""The same tables and rows in both engines, ZetaSQL's reference implementation and the local stack."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from google.cloud import bigquery

from common.clients import BigQueryEndpoints
from local.endpoints import Endpoints
from tests.sql import rows, zeta
from transforms.bigquery.append import Appender
from transforms.bigquery.connection import WriteChannel
from transforms.bigquery.streams import default_stream

QUANTILE: Final = re.compile(r"APPROX_QUANTILES\((.*?), 100\)\[OFFSET\((\d+)\)\]")
RANK: Final = r"ARRAY_AGG(\1 IGNORE NULLS ORDER BY \1)[OFFSET(CAST(CEIL(\2 * COUNT(\1) / 100) AS INT64) - 1)]"
"""The element of the same rank, as ZetaSQL's implementation lacks APPROX_QUANTILES. The local stack gives
this element, BigQuery one near it."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class World:
    """A dataset in both engines.

    Attributes:
      dataset: "PROJECT.DATASET".
      stored: the rows by name of the table.
    """

    dataset: str
    stored: Mapping[str, Rows]
    catalog: zeta.Catalog
    client: bigquery.Client

    def expected(self, sql: str, parameters: Sequence[bigquery.ScalarQueryParameter] = ()) -> Rows:
        """The rows by the reference implementation."""
        return self.catalog.execute(QUANTILE.sub(RANK, sql), parameters)

    def actual(self, sql: str, parameters: Sequence[bigquery.ScalarQueryParameter] = ()) -> Rows:
        """The rows by the local stack."""
        config = bigquery.QueryJobConfig(query_parameters=parameters)
        return [dict(row.items()) for row in self.client.query(sql, job_config=config).result()]


def clients(emulator: Endpoints) -> tuple[BigQueryEndpoints, bigquery.Client]:
    """The endpoints of the local stack, and a client of its REST API."""
    endpoints = BigQueryEndpoints(emulator.bigquery, emulator.bigquery_storage)
    return endpoints, endpoints.client(emulator.project)


def store(endpoints: BigQueryEndpoints, table: str, stored: Rows, schema: pa.Schema) -> None:
    """Appends rows to a table of the local stack, as the pipelines do."""
    channel = WriteChannel(endpoints.write_client)
    appender = Appender(channel, default_stream(table), schema)
    result = appender.append([rows.batch(stored, schema)])
    appender.close()
    channel.close()
    assert (result.rows, result.refused) == (len(stored), [])


def plain(value: Any) -> Any:
    """A value that can be sorted and compared, floats cut to nine digits."""
    if isinstance(value, float):
        return f"{value + 0.0:.9g}"  # -0.0 is equal to 0.0
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return value
