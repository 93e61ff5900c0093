"""Points Beam's own BigQuery connectors at the local stack, to measure them beside ours.

    with beam_connectors(stack.endpoints, gcs_root=tmp_path), beam.Pipeline(runner="FnApiRunner") as pipeline:
        pipeline | ... | WriteToBigQuery(..., method="FILE_LOADS", custom_gcs_temp_location="gs://local/tmp")

For load jobs the emulator must be told the same `gcs_root` (see `LocalStack`). It holds for workers in this
process: the runners FnApiRunner and LocalStreamingRunner, not `--direct_running_mode=multi_processing`.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from apache_beam.internal.gcp.auth import _Credentials
from apache_beam.io.gcp import bigquery as beam_bigquery
from apache_beam.io.gcp.internal.clients.bigquery import BigqueryV2
from google.cloud.bigquery_storage_v1 import BigQueryReadClient
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

from common.connections import insecure_channel
from local.endpoints import Endpoints
from local.gcs import local_gcs

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@contextlib.contextmanager
def beam_connectors(endpoints: Endpoints, gcs_root: Path | None = None) -> Iterator[None]:
    """Makes WriteToBigQuery and ReadFromBigQuery use `endpoints` in this process, while a `with` block runs.

    Args:
      endpoints: Of a stack with the BigQuery emulator.
      gcs_root: A directory that stands for gs://; None leaves gs:// to Cloud Storage.

    Raises:
      ValueError: the stack has no BigQuery emulator.
    """
    if endpoints.bigquery is None or endpoints.bigquery_storage is None:
        raise ValueError("Beam's BigQuery connectors need a stack with the BigQuery emulator.")
    with contextlib.ExitStack() as stack:
        # One client (google-cloud-bigquery, for streaming inserts) reads its endpoint from the environment.
        stack.enter_context(endpoints.activate())
        # Another (apitools, for tables and jobs) has it in a class attribute.
        stack.enter_context(mock.patch.object(BigqueryV2, "BASE_URL", f"{endpoints.bigquery}/bigquery/v2/"))
        # Credentials are looked up once a process. They must be this stack's, and not stay afterwards.
        stack.enter_context(mock.patch.object(_Credentials, "_credentials_init", False))
        stack.enter_context(mock.patch.object(_Credentials, "_credentials", None))
        # The third (Storage Read API) takes no endpoint at all.
        wire = stack.enter_context(insecure_channel(endpoints.bigquery_storage, _UNLIMITED))
        module = types.SimpleNamespace(**vars(beam_bigquery.bq_storage))
        module.BigQueryReadClient = lambda: BigQueryReadClient(
            transport=BigQueryReadGrpcTransport(channel=wire)
        )
        stack.enter_context(mock.patch.object(beam_bigquery, "bq_storage", module))
        if gcs_root is not None:
            stack.enter_context(local_gcs(gcs_root))
        yield
