"""Reads a whole BigQuery table through the Storage Read API, in Arrow."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pyarrow as pa
from google.cloud.bigquery_storage import BigQueryReadClient

from common.bigquery import open_session, read_stream, session_schema, table_path
from common.clients import EndpointOptions
from common.google import ERRORS, explain
from common.names import TABLE

SCHEME = "bigquery://"


def read_table(
    name: str,
    choose: Callable[[Sequence[str]], Sequence[str]],
    client: BigQueryReadClient | None = None,
    billing_project: str | None = None,
) -> pa.Table:
    """Reads all rows of some columns of a table.

    Args:
      name: project.dataset.table.
      choose: gets the names of the columns that are there, and returns those to read.
      client: of the Storage Read API. When None, of Google's with the environment's credentials, or of the
        local stack that the environment names.
      billing_project: the project that pays for the read. When None, it is the environment's default
        project, or without one that of the table. A public table needs one of yours.

    Raises:
      ValueError: `name` breaks a rule, `choose` refuses the columns, or BigQuery refuses the read.
    """
    project = TABLE.split(TABLE.check(name, f"{SCHEME}{name}"))["PROJECT"]
    payer = billing_project or os.environ.get("GOOGLE_CLOUD_PROJECT") or project
    path = table_path(name)
    try:
        client = client or EndpointOptions().with_environment(os.environ).endpoints().read_client()
        # A session without a selection answers the schema; it costs nothing as long as nobody reads from it.
        present = session_schema(open_session(client, path, payer, max_streams=1)).names
        session = open_session(client, path, payer, choose(present), max_streams=1)
        schema = session_schema(session)
        batches = [batch for stream in session.streams for batch in read_stream(client, stream.name, schema)]
        return pa.Table.from_batches(batches, schema)
    except ERRORS as error:
        problem = explain(error)
        remedy = ""
        if problem.kind == "forbidden":
            remedy = (
                f". The read is paid for in projects/{payer}: set GOOGLE_CLOUD_PROJECT to a project in "
                "which you have roles/bigquery.readSessionUser, and have the table shared with you"
            )
        raise ValueError(f"{SCHEME}{name}: {problem.text}{remedy}") from error
