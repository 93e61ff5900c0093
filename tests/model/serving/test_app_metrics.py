"""The container's metrics, as Prometheus reads them, also from several workers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import orjson
import psutil
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from model import artifact
from model.serving.metrics import ENV_DIRECTORY, Metrics
from tests.model.serving.artifacts import VERSION, transactions
from tests.model.serving.servers import container

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration


def body(n: int) -> bytes:
    return orjson.dumps({"instances": transactions(n)}, option=orjson.OPT_SERIALIZE_NUMPY)


def samples(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = requests.get(f"{url}/metrics", timeout=60)
    assert response.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(url: str, name: str, **labels: str) -> float:
    return samples(url).get((f"anomaly_server_{name}", tuple(sorted(labels.items()))), 0)


def test_requests_rows_scores_and_refusals_are_counted(served_artifact):
    with container(served_artifact.uri, MAX_ROWS="150") as served:
        url = served.url
        for n in (1, 128):
            assert requests.post(f"{url}/predict", body(n), timeout=60).ok
        for wrong, code in ((b"{", 400), (body(151), 413)):
            assert requests.post(f"{url}/predict", wrong, timeout=60).status_code == code
        assert value(url, "requests_total", route="predict", code="200") == 2
        assert value(url, "requests_total", route="predict", code="400") == 1
        assert value(url, "rows_total") == 129
        assert value(url, "rejected_total", reason="bad_request") == 1
        assert value(url, "rejected_total", reason="too_many_rows") == 1
        assert value(url, "request_seconds_count") == 2
        assert value(url, "score_count", model_version=VERSION) == 129
        name = served_artifact.manifest.model_name
        assert value(url, "model_info", model_name=name, model_version=VERSION) == 1


def test_buckets_of_the_score_count_what_one_by_one_would(served_artifact):
    """Many rows go another way than one row."""
    counts = []
    for sizes in ([100], [1] * 100):
        with container(served_artifact.uri) as served:
            rows = transactions(100)
            start = 0
            for n in sizes:
                part = orjson.dumps({"instances": rows[start : start + n]}, option=orjson.OPT_SERIALIZE_NUMPY)
                assert requests.post(f"{served.url}/predict", part, timeout=60).ok
                start += n
            counts.append({k: v for k, v in samples(served.url).items() if "_score_" in k[0]})
    together, single = counts
    assert together.keys() == single.keys()
    thresholds = {dict(labels).get("le") for _, labels in single}
    assert all(str(float(step)) in thresholds for step in served_artifact.manifest.thresholds.values())
    for key, number in single.items():
        assert together[key] == pytest.approx(number, rel=1e-5)


def test_workers_are_counted_together_also_after_one_has_died(served_artifact):
    with container(served_artifact.uri, "--workers", "2") as served:
        process = served.process
        process.wait_until(lambda: process.log_text().count("serving ") == 2, 90)
        # A connection each, so that both workers get some.
        for _ in range(40):
            assert requests.post(f"{served.url}/predict", body(2), timeout=60).ok
        # The other worker counts its latest answers a moment later.
        process.wait_until(lambda: value(served.url, "rows_total") >= 80, 30)
        assert value(served.url, "rows_total") == 80
        victim = next(
            child
            for child in psutil.Process().children(recursive=True)
            if served_by(child, served.url) and "spawn_main" in " ".join(child.cmdline())
        )
        victim.send_signal(signal.SIGKILL)
        process.wait_until(lambda: process.log_text().count("serving ") == 3, 90)
        assert requests.post(f"{served.url}/predict", body(2), timeout=60).ok
        process.wait_until(lambda: value(served.url, "rows_total") >= 82, 30)
        assert value(served.url, "rows_total") == 82
        alive = [key for key in samples(served.url) if key[0] == "anomaly_server_model_info"]
        assert len(alive) == 1


def served_by(process: psutil.Process, url: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("AIP_HTTP_PORT") == url.rpartition(":")[2]
    return False


def swapped(uri: str) -> str:
    """The metrics of a process in which a new model came between an answer and its count."""
    metrics, first = Metrics(), artifact.read(uri).manifest
    second = dataclasses.replace(first, model_version="next", thresholds={"medium": 400.0, "high": 900.0})

    async def answer() -> None:
        metrics.loaded(first)
        metrics.answered("predict", 0.001, np.float32([500.0, 600.0]), first.model_version)
        metrics.loaded(second)
        metrics.answered("predict", 0.001, np.float32([500.0]), second.model_version)
        metrics.flush()

    asyncio.run(answer())
    return metrics.text()[0].decode()


def test_scores_are_counted_under_the_version_that_gave_them_by_its_buckets(
    served_artifact, monkeypatch, tmp_path
):
    # prometheus-client decides at its import where values are kept: a process of its own.
    monkeypatch.setenv(ENV_DIRECTORY, str(tmp_path))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        text = pool.submit(swapped, served_artifact.uri).result(timeout=120)
    lines = text.splitlines()
    assert f'anomaly_server_score_count{{model_version="{VERSION}"}} 2.0' in lines
    assert f'anomaly_server_score_sum{{model_version="{VERSION}"}} 1100.0' in lines
    assert 'anomaly_server_score_count{model_version="next"} 1.0' in lines
    assert 'anomaly_server_score_bucket{le="400.0",model_version="next"} 0.0' in lines
    assert 'anomaly_server_score_bucket{le="900.0",model_version="next"} 1.0' in lines
    assert "anomaly_server_rows_total 3.0" in lines
