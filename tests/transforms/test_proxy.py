"""Connections of workers to this machine go there without the proxy of the environment."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest
from google.cloud.bigquery_storage_v1.types import DataFormat, ReadSession

from common.clients import BigQueryEndpoints
from tests.model.serving.artifacts import transactions
from tests.proxies import behind
from tests.transforms.remote_cases import TIME, batches, check_every_row_once, handler_of, score_all

pytest_plugins = (
    "tests.model.serving.fixtures",
    "tests.proxy_fixtures",
    "tests.transforms.remote_fixtures",
)
pytestmark = pytest.mark.integration


def test_scorers_reach_a_server_on_this_machine_directly(kind, server, served_artifact, dead_proxy):
    elements = batches(60)
    handler = handler_of(kind, server, served_artifact)
    scores, dead = score_all(handler, handler.load_model(), elements)
    check_every_row_once(scores, dead, served_artifact, elements)


def test_a_batch_job_scores_by_a_server_on_this_machine(server, served_artifact, dead_proxy, tmp_path):
    source, output = tmp_path / "transactions.jsonl", tmp_path / "scored"
    row = {"transaction_id": "t", "features": transactions(1)[0].tolist(), "event_time": TIME.isoformat()}
    source.write_bytes(orjson.dumps(row))
    command = [sys.executable, "-m", "pipelines.batch", f"--input={source}", f"--output={output}"]
    command += [f"--model={served_artifact.uri}", "--scorer=torchserve", f"--torchserve_url={server.url}"]
    # The runner talks to such workers over gRPC, by channels that are Beam's.
    command += ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    done = subprocess.run(command, capture_output=True, text=True, env=behind(dead_proxy), check=False)
    assert done.returncode == 0, done.stderr
    assert "rows scored: 1" in done.stdout


def test_bigquery_on_this_machine_is_reached_directly(bigquery_emulator, dataset, dead_proxy):
    endpoints = BigQueryEndpoints(bigquery_emulator.bigquery, bigquery_emulator.bigquery_storage)
    client = endpoints.client(bigquery_emulator.project)
    table = f"{bigquery_emulator.project}.{dataset}.t"
    client.query_and_wait(f"CREATE TABLE `{table}` AS SELECT 1 AS n")
    path = f"projects/{bigquery_emulator.project}/datasets/{dataset}/tables/t"
    with endpoints.write_client() as writer:
        assert writer.get_write_stream(name=f"{path}/streams/_default").name.startswith(path)
    session = ReadSession(table=path, data_format=DataFormat.ARROW)
    with endpoints.read_client() as reader:
        parent = f"projects/{bigquery_emulator.project}"
        assert reader.create_read_session(parent=parent, read_session=session).streams
