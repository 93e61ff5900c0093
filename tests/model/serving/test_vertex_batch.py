"""Batch prediction jobs and the models of the registry: the real SDK, a server here, the real container."""

from __future__ import annotations

import json

import numpy as np
import pytest
import requests
from google.cloud.aiplatform import jobs

from features.ulb import FEATURES
from model.serving.predictor import Predictor
from tests.model.serving.artifacts import VERSION, transactions
from tests.model.serving.vertex_cases import CUSTOM, NEWER, PARENT

pytest_plugins = ("tests.model.serving.fixtures", "tests.model.serving.vertex_fixtures")
pytestmark = pytest.mark.integration

SOURCE = "my-project.anomaly.transactions"
BATCH = ["batch", "--name", "m", "--source", SOURCE, "--output", "my-project.anomaly"]


@pytest.fixture
def table(vertex, monkeypatch):
    """A table whose columns stand in another order, among others that are no features."""
    monkeypatch.setattr(jobs, "_JOB_WAIT_TIME", 0.01)
    features = transactions(20)
    vertex.tables[f"bq://{SOURCE}"] = [
        {"transaction_id": f"t-{i}", **dict(zip(reversed(FEATURES), reversed(row), strict=True)), "note": "x"}
        for i, row in enumerate(features.tolist())
    ]
    return features


def forward_to(vertex, url):
    vertex.forward = lambda deployed, body, _: requests.post(
        url, body, headers={"Content-Type": "application/json"}, timeout=60
    )


def test_a_table_is_scored_by_names_whatever_its_columns(
    uploaded, run, vertex, table, custom_container, served_artifact
):
    forward_to(vertex, f"{custom_container.url}/predict")
    code, out, err = run(
        *BATCH, "--version", VERSION, "--fields", "anomaly_score", "--replicas", "2", "--rows", "32"
    )
    assert code == 0, err
    ((method, path, body),) = vertex.calls
    assert (method, path) == ("POST", f"{PARENT}/batchPredictionJobs")
    (model,) = vertex.models
    assert body == {
        "displayName": "m-batch",
        "model": f"{model}@1",
        "modelParameters": {"fields": ["anomaly_score"]},
        "inputConfig": {"instancesFormat": "bigquery", "bigquerySource": {"inputUri": f"bq://{SOURCE}"}},
        "instanceConfig": {"instanceType": "array", "includedFields": list(FEATURES)},
        "outputConfig": {
            "predictionsFormat": "bigquery",
            "bigqueryDestination": {"outputUri": "bq://my-project.anomaly"},
        },
        "dedicatedResources": {
            "machineSpec": {"machineType": "n1-standard-4"},
            "startingReplicaCount": 2,
            "maxReplicaCount": 10,
        },
        "manualBatchTuningParameters": {"batchSize": 32},
        "labels": {"managed-by": "beam-transaction-anomaly"},
    }
    assert "rows     20 predicted, 0 failed\ntable    my-project.anomaly.predictions_2026_01_01\n" in out
    rows = vertex.tables["bq://my-project.anomaly.predictions_2026_01_01"]
    expected = Predictor(served_artifact).outputs(table, ("anomaly_score",))["anomaly_score"]
    np.testing.assert_allclose([row["prediction"]["anomaly_score"] for row in rows], expected, rtol=1e-5)


def test_a_job_that_fails_is_an_error_with_its_reason(uploaded, run, vertex, table, custom_container):
    forward_to(vertex, f"{custom_container.url}/predict")
    for row in vertex.tables[f"bq://{SOURCE}"]:
        row["V7"] = None
    code, _, err = run(*BATCH)
    assert code == 1
    assert "batchPredictionJobs/" in err
    assert "V7" in err


def test_a_job_need_not_be_waited_for_nor_sent(uploaded, run, vertex, table):
    code, out, err = run(*BATCH, "--no_wait")
    assert code == 0, err
    (job,) = vertex.jobs
    assert out == f"job      {job}\n"
    code, out, _ = run(*BATCH, "--dry_run")
    assert (code, len(vertex.jobs)) == (0, 1)
    assert '"JobService.create_batch_prediction_job"' in out


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--source", "anomaly.t"], "--source: expected PROJECT.DATASET.TABLE, got 'anomaly.t'"),
        (["--output", "bq://anomaly"], "--output: expected PROJECT.DATASET, got 'anomaly'"),
        (["--replicas", "11"], "--max_replicas: expected --replicas 11 or more, got 10"),
    ],
)
def test_a_wrong_option_starts_no_job(uploaded, run, vertex, flags, text):
    code, _, err = run(*BATCH, *flags)
    assert (code, text in err) == (2, True), err
    assert vertex.jobs == {}


def test_models_are_listed_with_versions_and_aliases(uploaded, run, vertex, served_artifact):
    flags = ["--model", served_artifact.uri, "--staging", "gs://b/m"]
    assert run("upload", *flags, "--image", "prebuilt-cpu", "--name", "a")[0] == 0
    rows = json.loads(run("models", "--format", "json")[1])
    assert [(row["name"], row["version"], row["id"], row["aliases"], row["default"]) for row in rows] == [
        ("a", VERSION, "1", "v-20260101-120000", True),
        ("m", VERSION, "1", "v-20260101-120000", False),
        ("m", NEWER, "2", "v-20260202-080000", True),
    ]
    assert rows[1]["image"] == CUSTOM
    assert rows[2]["artifact"] == f"gs://b/m/pytorch_autoencoder/{NEWER}"
    assert rows[1]["resource"] in vertex.models


def test_without_models_the_list_says_so(run):
    assert run("models")[1] == "No models in this project and region.\n"
