"""A new model in a running server: taken over, refused, taken back; and the memory of the old ones."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import torch

from common.retry import Patience
from model import artifact
from model.manifest import MODEL_FILE
from model.rollout import go_back, promote
from model.serving import loader as loading
from model.serving.loader import Loader
from model.serving.predictor import Predictor
from model.serving.refresh import Refresh
from tests.model.serving.artifacts import build_artifact, transactions
from tests.model.serving.servers import container
from tests.model.serving.test_app import encode
from tests.model.serving.test_app_metrics import samples

INFO, REFRESHES = "anomaly_server_model_info", "anomaly_server_model_refreshes_total"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, artifact.Artifact]:
    root = tmp_path_factory.mktemp("models")
    return {version: build_artifact(root / version, version, seed=i) for i, version in enumerate("ab")}


def served_version(url: str) -> str:
    return requests.get(f"{url}/health", timeout=30).json()["model_version"]


@pytest.mark.integration
def test_a_server_takes_a_new_model_over(models, tmp_path):
    live = str(tmp_path / "live")
    promote(models["a"].uri, live)
    rows = transactions(20)
    expected = {version: model.load_model() for version, model in models.items()}

    def check(url: str, version: str) -> None:
        """All that the server says is of one model."""
        answer = requests.post(f"{url}/predict", encode(rows), timeout=30).json()
        assert answer["metadata"]["model_version"] == version
        scores = expected[version].score(torch.from_numpy(rows))[0].tolist()
        assert [row["anomaly_score"] for row in answer["predictions"]] == pytest.approx(scores, rel=1e-4)
        described = requests.get(f"{url}/metadata", timeout=30).json()
        assert described["model_version"] == version
        assert described["thresholds"] == dict(models[version].manifest.thresholds)
        shown = {dict(key[1])["model_version"]: n for key, n in samples(url).items() if key[0] == INFO}
        assert {name for name, n in shown.items() if n} == {version}

    with container(live, MODEL_REFRESH_SECONDS="1") as served:
        wait = served.process.wait_until
        check(served.url, "a")
        promote(models["b"].uri, live)
        wait(lambda: served_version(served.url) == "b", 60)
        check(served.url, "b")
        torn = Path(live, MODEL_FILE)
        whole = torn.read_bytes()
        torn.write_bytes(whole[:-1])
        Path(live, "manifest.json").write_text(Path(live, "manifest.json").read_text() + " ")
        wait(lambda: "The model in use stays." in served.process.log_text(), 60)
        check(served.url, "b")
        torn.write_bytes(whole)
        go_back(live)
        wait(lambda: served_version(served.url) == "a", 60)
        check(served.url, "a")
        counted = {dict(key[1])["result"]: n for key, n in samples(served.url).items() if key[0] == REFRESHES}
        assert counted == {"refreshed": 2, "refused": 1}


def test_old_models_are_freed(models, tmp_path):
    live = str(tmp_path / "live")
    promote(models["a"].uri, live)
    loaded: list[weakref.ref[Predictor]] = []
    is_loaded = threading.Event()

    def note(predictor: Predictor) -> None:
        loaded.append(weakref.ref(predictor))
        is_loaded.set()

    loader = Loader(live, Refresh(seconds=1, loaded=note))
    loader.start()
    for version in "bab":
        assert is_loaded.wait(60)
        is_loaded.clear()
        promote(models[version].uri, live)
    assert is_loaded.wait(60)
    loader.stop()
    loader._thread.join(60)
    assert [predictor() is None for predictor in loaded] == [True, True, True, False]
    assert loader.predictor is loaded[-1]()


@pytest.fixture
def following(models, tmp_path, monkeypatch):
    """Makes a loader of a place, which looks for a new model every second; with what is called for each."""
    monkeypatch.setattr(loading, "PATIENCE", Patience(seconds=math.inf, first=0.01, longest=0.01))
    started: list[Loader] = []

    def start(**calls: Callable[..., None]) -> tuple[str, Loader]:
        loader = Loader(str(tmp_path / "live"), Refresh(seconds=1, **calls))
        started.append(loader)
        loader.start()
        return str(tmp_path / "live"), loader

    yield start
    for loader in started:
        loader.stop()
        loader._thread.join(60)


def wait_for(loader: Loader, version: str) -> None:
    deadline = time.monotonic() + 60
    while loader.predictor is None or loader.predictor.manifest.model_version != version:
        assert time.monotonic() < deadline, loader.status
        assert loader._thread.is_alive(), loader.status
        time.sleep(0.01)


def test_a_server_that_starts_beside_a_damaged_model_takes_the_one_before(models, tmp_path, following):
    live = tmp_path / "live"
    for version in "ab":
        promote(models[version].uri, str(live))
    (live / MODEL_FILE).write_bytes(b"torn")
    _, loader = following()
    wait_for(loader, "a")
    promote(models["b"].uri, str(live))
    wait_for(loader, "b")


def test_a_server_that_waits_for_a_model_takes_it_whenever_it_comes(models, following):
    live, loader = following()
    while loader._damaged <= loading.DAMAGED_ATTEMPTS:
        assert loader._thread.is_alive(), loader.status
        time.sleep(0.01)
    promote(models["a"].uri, live)
    wait_for(loader, "a")


def test_a_count_that_fails_costs_no_model(models, tmp_path, following, caplog):
    promote(models["a"].uri, str(tmp_path / "live"))

    def fail(event: str) -> None:
        raise OSError("the disk of the counts is full")

    live, loader = following(note=fail)
    wait_for(loader, "a")
    promote(models["b"].uri, live)
    wait_for(loader, "b")
    promote(models["a"].uri, live)
    wait_for(loader, "a")
    assert "a model that was refreshed is not counted" in caplog.text


def test_a_model_whose_metrics_fail_is_tried_again(models, tmp_path, following):
    promote(models["a"].uri, str(tmp_path / "live"))
    seen: list[str] = []

    def fail_once(predictor: Predictor) -> None:
        seen.append(predictor.manifest.model_version)
        if seen.count(seen[-1]) == 1:
            raise OSError("the disk of the metrics is full")

    live, loader = following(loaded=fail_once)
    wait_for(loader, "a")
    promote(models["b"].uri, live)
    wait_for(loader, "b")
    assert seen == ["a", "a", "b", "b"]
