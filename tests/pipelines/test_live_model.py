"""A stream whose model is replaced while it runs, on the emulators: no row lost, right thresholds."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from google.cloud import pubsub_v1

from local.runner import LocalStreamingRunner, run_until_drained
from model import artifact
from model.artifact import Artifact
from model.inference import outputs
from model.manifest import MODEL_FILE
from model.outputs import ANOMALY_SCORE
from model.synthetic.generator import TransactionGenerator
from model.thresholds import SEVERITIES, severity_codes
from operations.models.__main__ import main as model_command
from pipelines import streaming
from publisher.messages import MessageSource, Outgoing
from publisher.publish import publish
from publisher.pubsub import PubSubTopic
from tests.model.serving.artifacts import build_artifact
from tests.pipelines.test_end_to_end import endpoints, rows
from transforms import metrics

pytestmark = pytest.mark.integration

PORTION = 100


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Artifact]:
    """Two models whose thresholds many transactions of the generator reach."""
    made = {}
    for seed, version in enumerate("ab"):
        built = build_artifact(tmp_path / version, version, seed=seed)
        thresholds = {"medium": 1.0 + seed, "high": 3.0 + seed}
        manifest = dataclasses.replace(built.manifest, thresholds=thresholds)
        made[version] = artifact.write(tmp_path / version, manifest, [built.model_path])
    return made


def test_a_stream_takes_a_model_refuses_a_torn_one_and_goes_back(
    local_stack, channel, dataset, bigquery_client, models, tmp_path
):
    live = str(tmp_path / "live")
    assert model_command(["promote", models["a"].uri, "--to", live]) == 0
    alert_topic = f"{channel.topic}-alerts"
    pubsub_v1.PublisherClient().create_topic(name=alert_topic)
    argv = [
        f"--subscription={channel.subscription}",
        f"--model={live}",
        "--model_refresh_seconds=1",
        f"--output_dataset={local_stack.project}.{dataset}",
        f"--alert_topic={alert_topic}",
        *endpoints(local_stack),
    ]
    result = streaming.run(argv, runner=LocalStreamingRunner())
    source = Recorded()
    published = 0

    def publish_until(counter: str, value: int) -> None:
        """Publishes without a pause until a counter says so; rows are under way at every change."""
        nonlocal published
        deadline = time.monotonic() + 120
        with PubSubTopic(channel.topic) as topic:
            while metrics.totals(result).get(counter, 0) < value:
                assert time.monotonic() < deadline, metrics.totals(result)
                published += publish(source, topic, count=PORTION).confirmed
                time.sleep(0.1)

    publish_until(metrics.ROWS_SCORED, PORTION)
    assert model_command(["promote", models["b"].uri, "--to", live]) == 0
    publish_until(metrics.MODEL_REFRESHES, 1)
    # By hand, and cut off: the manifest of another model, and half of its network.
    torn = dataclasses.replace(models["a"].manifest, model_version="torn", files={MODEL_FILE: "0" * 64})
    Path(live, "manifest.json").write_text(torn.to_json())
    publish_until(metrics.MODEL_REFUSALS, 1)
    assert model_command(["promote", models["b"].uri, "--to", live]) == 0
    assert model_command(["promote", models["a"].uri, "--to", live]) == 0
    publish_until(metrics.MODEL_REFRESHES, 2)
    assert model_command(["promote", "--back", "--to", live]) == 0
    publish_until(metrics.MODEL_REFRESHES, 3)
    run_until_drained(result, lambda: metrics.totals(result)[metrics.ROWS_SCORED] >= published, timeout=120)

    totals = metrics.totals(result)
    scores = rows(bigquery_client, dataset, "scores").to_pylist()
    assert len(scores) == len({row["transaction_id"] for row in scores}) == published
    assert totals[metrics.ROWS_IN] == totals[metrics.ROWS_SCORED] == published
    by_version = Counter(row["model_version"] for row in scores)
    assert by_version.keys() == {"a", "b"}
    assert totals[metrics.MODEL_REFUSALS] == 1
    thresholds = {version: dict(one.manifest.thresholds) for version, one in models.items()}
    for row in scores:
        code = severity_codes([row["anomaly_score"]], thresholds[row["model_version"]])[0]
        assert row["severity"] == SEVERITIES[code]
    alerts = rows(bigquery_client, dataset, "alerts").to_pylist()
    assert {row["model_version"] for row in alerts} == {"a", "b"}
    assert len(alerts) == totals[metrics.ALERTS] == sum(row["severity"] != "normal" for row in scores)
    for row in alerts:
        assert row["threshold"] == thresholds[row["model_version"]][row["severity"]]
    assert {row["transaction_id"] for row in scores} == source.features.keys()
    check_scores(scores, source.features, models)


class Recorded:
    """A source that keeps the features of what it gave, by transaction."""

    def __init__(self) -> None:
        self._source = MessageSource(TransactionGenerator(seed=3))
        self.features: dict[str, list[float]] = {}

    def take(self, n: int) -> Outgoing:
        """The next messages."""
        taken = self._source.take(n)
        for message in map(json.loads, taken.payloads):
            self.features[message["transaction_id"]] = message["features"]
        return taken


def check_scores(scores: list[dict], sent: dict[str, list[float]], models: dict[str, Artifact]) -> None:
    """Each score is that of the model whose version stands beside it."""
    for version, model in models.items():
        mine = [row for row in scores if row["model_version"] == version]
        own = {row["transaction_id"]: row["anomaly_score"] for row in mine}
        features = np.array([sent[name] for name in own], np.float32)
        expected = outputs(model.load_model(), features, [ANOMALY_SCORE])[ANOMALY_SCORE]
        np.testing.assert_allclose(list(own.values()), expected, rtol=1e-4)
