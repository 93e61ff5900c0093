"""Points Beam's own connectors at the emulator, in each worker process that imports this by --beam_plugin."""

import os
from pathlib import Path

from benchmarks.beam_connectors import beam_connectors
from local.endpoints import BIGQUERY_STORAGE_VARIABLE, Endpoints

_ENDPOINTS = Endpoints(
    pubsub=None,
    bigquery=os.environ["BIGQUERY_EMULATOR_HOST"],
    bigquery_storage=os.environ[BIGQUERY_STORAGE_VARIABLE],
    project=os.environ["GOOGLE_CLOUD_PROJECT"],
)
# Never left: it holds as long as the process.
_IN_FORCE = beam_connectors(_ENDPOINTS, Path(os.environ["TEST_GCS_ROOT"]))
_IN_FORCE.__enter__()
