"""Prometheus metrics of the server, summed over its worker processes.

prometheus-client keeps the values of each process in files of one directory. It reads the name from the
environment when it is imported, so `directory` must have made it before. It needs several microseconds to
count one thing, so the answers of a moment are counted together.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.artifact import Manifest

ENV_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
LATENCIES: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SCORE_QUANTILES: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""The score's buckets end at these quantiles of normal transactions, at the thresholds and beyond."""
BEYOND: Final = (2, 5, 10, 100)
"""Multiples of the highest threshold."""


FLUSH_SECONDS: Final = 0.25
"""Time until an answer shows in the metrics that another process of the server is asked for."""


@contextlib.contextmanager
def directory() -> Iterator[None]:
    """Makes the directory of the metrics for this process and those that it starts; removes it at the end.

    A directory that the environment names already is taken as it is, and stays.
    """
    if os.environ.get(ENV_DIRECTORY):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="anomaly-metrics-", ignore_cleanup_errors=True) as path:
        os.environ[ENV_DIRECTORY] = path
        try:
            yield
        finally:
            del os.environ[ENV_DIRECTORY]


class Metrics:
    """The metrics that one process counts."""

    def __init__(self) -> None:
        # Deferred: the import decides where values are kept.
        from prometheus_client import Counter, Gauge, Histogram

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"anomaly_server_{name}", text, labels, registry=None)

        self._requests = counter("requests", "Requests for scores, by status of the answer.", "route", "code")
        self._rows = counter("rows", "Rows that were scored.")
        self._rejected = counter("rejected", "Requests for scores that were refused, by reason.", "reason")
        self._seconds = Histogram(
            "anomaly_server_request_seconds",
            "Time from the last byte of a request for scores to its answer.",
            buckets=LATENCIES,
            registry=None,
        )
        self._model = Gauge(
            "anomaly_server_model_info",
            "1 for the model that a process serves, 0 for one that it served before.",
            ["model_name", "model_version"],
            multiprocess_mode="livemax",
            registry=None,
        )
        self._refreshes = counter("model_refreshes", "Artifacts taken over or refused.", "result")
        self._served: tuple[str, str] | None = None
        # The histogram of each model version, and the ends of its buckets.
        self._scores: dict[str, tuple[Any, npt.NDArray[np.float64]]] = {}
        self._answers: list[tuple[str, float, npt.NDArray[np.float32], str]] = []

    def loaded(self, manifest: Manifest) -> None:
        """Names the model, and prepares the histogram of its scores."""
        from prometheus_client import Histogram

        names = (manifest.model_name, manifest.model_version)
        quantiles = manifest.quantiles
        steps = sorted(manifest.thresholds.values())
        ends = [*np.interp(SCORE_QUANTILES, quantiles.probabilities, quantiles.scores), *steps]
        score_ends = np.unique([*ends, *(steps[-1] * times for times in BEYOND)])
        if self._served:
            self._model.labels(*self._served).set(0)
        self._model.labels(*names).set(1)
        self._served = names
        histogram = Histogram(
            "anomaly_server_score",
            "Anomaly scores; buckets end at quantiles of normal transactions and at the thresholds.",
            ["model_version"],
            buckets=score_ends.tolist(),
            registry=None,
        ).labels(manifest.model_version)
        # The event loop flushes while the thread that looks for models is here: one step for it.
        self._scores[manifest.model_version] = histogram, score_ends

    def refreshed(self, result: str) -> None:
        """Counts an artifact that came after the first: "refreshed" or "refused"."""
        self._refreshes.labels(result).inc()

    def answered(self, route: str, seconds: float, scores: npt.NDArray[np.float32], version: str) -> None:
        """Notes a request with status 200, and the model version of its scores; `flush` counts it soon.

        A new model may be loaded until then, and must not get the scores of the one before.
        """
        if not self._answers:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        self._answers.append((route, seconds, scores, version))

    def flush(self) -> None:
        """Counts the requests that are noted."""
        if not self._answers:
            return
        routes, seconds, scores, versions = zip(*self._answers, strict=True)
        self._answers = []
        for route in set(routes):
            self._requests.labels(route, "200").inc(routes.count(route))
        self._rows.inc(sum(map(len, scores)))
        _observe(self._seconds, LATENCIES, np.array(seconds))
        for version in set(versions):
            histogram, ends = self._scores[version]
            rows = [each for each, scored_by in zip(scores, versions, strict=True) if scored_by == version]
            _observe(histogram, ends, np.concatenate(rows))

    def refused(self, route: str, code: int, reason: str) -> None:
        """Counts a request with another status."""
        self._requests.labels(route, str(code)).inc()
        self._rejected.labels(reason).inc()

    def text(self) -> tuple[bytes, str]:
        """The metrics of all processes in the format of Prometheus, and its content type."""
        self.flush()
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

        path = os.environ[ENV_DIRECTORY]
        for name in os.listdir(path):
            kind, _, process = name.removesuffix(".db").rpartition("_")
            if kind.startswith("gauge_live") and not _is_alive(int(process)):
                with contextlib.suppress(FileNotFoundError):  # another worker was first
                    mark_process_dead(int(process), path)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path)
        return generate_latest(registry), CONTENT_TYPE_LATEST


def _observe(histogram: Any, ends: npt.ArrayLike, values: npt.NDArray[np.floating[Any]]) -> None:
    """Does what `observe` of a histogram does, for many values in one step."""
    counts = np.bincount(np.searchsorted(ends, values))
    for position in np.flatnonzero(counts):
        histogram._buckets[position].inc(int(counts[position]))
    histogram._sum.inc(float(values.sum(dtype=np.float64)))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
