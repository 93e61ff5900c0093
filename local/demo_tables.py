"""The tables as the demo reads them: each row and each message once."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
from google.cloud import bigquery

from transforms import tables

STORED: Final = (tables.SCORES_TABLE, tables.ALERTS_TABLE, tables.ERRORS_TABLE)


def kept(client: bigquery.Client, dataset: str) -> int:
    """Counts the messages that have become a row, each once."""
    (row,) = client.query(kept_sql(dataset)).result()
    return int(row.n)


def kept_sql(dataset: str) -> str:
    """Makes the query that counts the rows and the dead letters of a dataset."""
    counts = " + ".join(
        f"(SELECT COUNT(*) FROM `{dataset}.{name}_latest`)"  # noqa: S608 - our own names
        for name in (tables.SCORES_TABLE, tables.ERRORS_TABLE)
    )
    return f"SELECT {counts} AS n"


def read_view(client: bigquery.Client, dataset: str, stored: str) -> pa.Table:
    """Reads the deduplicated rows of a table, one of STORED."""
    return client.query(rows_sql(dataset, stored)).result().to_arrow(create_bqstorage_client=False)


def rows_sql(dataset: str, stored: str) -> str:
    """Makes the query that reads the deduplicated rows of a table, one of STORED."""
    return f"SELECT * FROM `{dataset}.{stored}_latest`"  # noqa: S608 - our own names
