"""Prometheus metrics of the server, summed over its worker processes.

prometheus-client keeps the values of each process in files of one directory. It reads the name from the
environment when it is imported, so `directory` must have made it before.
"""

from __future__ import annotations

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
        self._ok: dict[str, Any] = {}
        self._scores: Any = None
        self._bounds: npt.NDArray[np.float64] = np.empty(0)

    def loaded(self, manifest: Manifest) -> None:
        """Names the model, and prepares the histogram of its scores."""
        from prometheus_client import Histogram

        names = (manifest.model_name, manifest.model_version)
        quantiles = manifest.quantiles
        steps = sorted(manifest.thresholds.values())
        ends = [*np.interp(SCORE_QUANTILES, quantiles.probabilities, quantiles.scores), *steps]
        self._bounds = np.unique([*ends, *(steps[-1] * times for times in BEYOND)])
        if self._served:
            self._model.labels(*self._served).set(0)
        self._model.labels(*names).set(1)
        self._served = names
        self._scores = Histogram(
            "anomaly_server_score",
            "Anomaly scores; buckets end at quantiles of normal transactions and at the thresholds.",
            ["model_version"],
            buckets=self._bounds.tolist(),
            registry=None,
        ).labels(manifest.model_version)

    def refreshed(self, result: str) -> None:
        """Counts an artifact that came after the first: "refreshed" or "refused"."""
        self._refreshes.labels(result).inc()

    def answered(self, route: str, seconds: float, scores: npt.NDArray[np.float32]) -> None:
        """Counts a request with status 200."""
        ok = self._ok.get(route)
        if ok is None:
            ok = self._ok[route] = self._requests.labels(route, "200")
        ok.inc()
        self._rows.inc(len(scores))
        self._seconds.observe(seconds)
        self._observe(scores)

    def refused(self, route: str, code: int, reason: str) -> None:
        """Counts a request with another status."""
        self._requests.labels(route, str(code)).inc()
        self._rejected.labels(reason).inc()

    def _observe(self, scores: npt.NDArray[np.float32]) -> None:
        if len(scores) == 1:
            self._scores.observe(float(scores[0]))
            return
        # As `observe` for each row, which would cost more than the model.
        counts = np.bincount(np.searchsorted(self._bounds, scores), minlength=len(self._bounds) + 1)
        for position in np.flatnonzero(counts):
            self._scores._buckets[position].inc(int(counts[position]))
        self._scores._sum.inc(float(scores.sum(dtype=np.float64)))

    @staticmethod
    def text() -> tuple[bytes, str]:
        """The metrics of all processes in the format of Prometheus, and its content type."""
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


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
