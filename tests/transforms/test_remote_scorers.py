"""The same transactions through every scorer: the model in the worker, Vertex AI, TorchServe, all real."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import batch
from tests.model.serving.artifacts import transactions
from tests.model.serving.vertex_cases import serve_through
from tests.model.serving.vertex_server import vertex_server
from tests.transforms.remote_cases import batch_of
from transforms import metrics
from transforms.remote import Limits, TorchServeHandler, VertexHandler
from transforms.schema import SCORES_FULL
from transforms.score import PytorchHandler

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration

ENDPOINT = "projects/my-project/locations/us-central1/endpoints/5"
SCORERS = ("pytorch", "vertex", "torchserve")


@pytest.fixture(scope="module")
def vertex(custom_container):
    """A Vertex AI endpoint in front of the FastAPI server."""
    with vertex_server() as server:
        serve_through(server, ENDPOINT, custom_container.url)
        yield server


@pytest.fixture(scope="module")
def scored_by(vertex, torchserve, served_artifact, tmp_path_factory):
    """The tables of a batch pipeline with each --scorer, as one table each, and its counters."""
    directory = tmp_path_factory.mktemp("batch")
    source = directory / "transactions.jsonl"
    with source.open("w") as file:
        for i, features in enumerate(transactions(700).tolist()):
            time = f"2026-03-01T00:00:{i % 60:02d}Z"
            file.write(
                json.dumps({"transaction_id": f"t-{i}", "features": features, "event_time": time}) + "\n"
            )
        file.write("not a transaction\n")
    flags = {
        "pytorch": [],
        "vertex": [f"--vertex_endpoint={ENDPOINT}", f"--vertex_api_endpoint={vertex.url}"],
        "torchserve": [
            f"--torchserve_url={torchserve.server.inference}",
            f"--torchserve_key_file={torchserve.server.key_file}",
        ],
    }
    results = {}
    for scorer in SCORERS:
        output = directory / scorer
        common = [f"--input={source}", f"--model={served_artifact.uri}", f"--output={output}"]
        result = batch.run([*common, f"--scorer={scorer}", *flags[scorer]])
        result.wait_until_finish()
        parts = [pq.read_table(path) for path in sorted(output.glob("scores-*"))]
        results[scorer] = pa.concat_tables(parts).sort_by("transaction_id"), metrics.totals(result)
    return results


@pytest.mark.parametrize("scorer", ["vertex", "torchserve"])
def test_a_batch_pipeline_writes_the_same_scores_with_every_scorer(scored_by, scorer):
    wanted, wanted_totals = scored_by["pytorch"]
    scores, totals = scored_by[scorer]
    assert wanted.num_rows == 700
    assert scores.schema == wanted.schema
    for name in ("transaction_id", "account_id", "event_time", "severity", "model_version"):
        assert scores[name].equals(wanted[name]), name
    np.testing.assert_allclose(scores["anomaly_score"], wanted["anomaly_score"], rtol=1e-5)
    for row, expected in zip(scores.to_pylist(), wanted.to_pylist(), strict=True):
        np.testing.assert_allclose(row["encoded"], expected["encoded"], rtol=1e-5, atol=1e-5)
        features, top = row["top_features"], expected["top_features"]
        assert [item["feature"] for item in features] == [item["feature"] for item in top]
        np.testing.assert_allclose(
            [item["contribution"] for item in features], [item["contribution"] for item in top], rtol=1e-4
        )
    shared = (metrics.ROWS_IN, metrics.ROWS_SCORED, metrics.DEAD_LETTERS)
    assert [totals[name] for name in shared] == [wanted_totals[name] for name in shared] == [701, 700, 1]


def test_every_scorer_gives_the_same_outputs_in_full_detail(vertex, torchserve, served_artifact):
    elements = batch_of(transactions(300, seed=3))
    common = {
        "thresholds": dict(served_artifact.manifest.thresholds),
        "model_version": served_artifact.manifest.model_version,
        "detail": "full",
        "limits": Limits(rows=64),
    }
    server = torchserve.server
    handlers = {
        "pytorch": PytorchHandler(served_artifact.uri, "full"),
        "vertex": VertexHandler(**common, endpoint=ENDPOINT, api_endpoint=vertex.url),
        "torchserve": TorchServeHandler(**common, url=server.inference, key_file=str(server.key_file)),
    }
    rows = {
        name: handler.run_inference(elements, handler.load_model())[0].scores.to_pylist()
        for name, handler in handlers.items()
    }
    # No shadow model scores here.
    numbers = [f.name for f in SCORES_FULL if pa.types.is_floating(f.type) and f.name != "shadow_score"]
    vectors = [field.name for field in SCORES_FULL if field.type == pa.list_(pa.float64())]
    assert (len(numbers), len(vectors)) == (10, 5)
    for scorer in ("vertex", "torchserve"):
        for row, expected in zip(rows[scorer], rows["pytorch"], strict=True):
            for name in (*numbers, *vectors):
                # Small entries are differences of large ones, and round like the largest.
                scale = max(1.0, float(np.abs(expected[name]).max()))
                np.testing.assert_allclose(
                    row[name], expected[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name
                )
