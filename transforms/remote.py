"""Scores TRANSACTIONS record batches by a server: TorchServe, or a Vertex AI endpoint.

RunInference with its metrics is Beam's, and so is the signal by which Dataflow learns of throttling. Beam's
remote handlers are replaced, for these reasons:

- `RemoteModelHandler` of Beam 2.77 repeats a whole batch, also the parts that were answered. It knows no
  Retry-After, and cannot halve a batch that holds a bad row.
- `VertexAIModelHandlerJSON` calls the endpoint while the pipeline is being built, and initialises the SDK
  there and not in the workers. It takes `env_vars` and fails on them.
- It retries no 429 of a dedicated endpoint, since the SDK makes it a ValueError, and it takes the error JSON
  of an invoked route for a prediction.
"""

from __future__ import annotations

import logging
import time
import weakref
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from apache_beam.io.components.adaptive_throttler import ThrottlingSignaler
from apache_beam.ml.inference.base import ModelHandler

import transforms.coder  # noqa: F401  registers the coder of record batches
from features.declaration import FeatureSpec
from features.default import ULB
from features.profiles import Bins, Sample
from features.ranges import FeatureRanges, FeatureWatch
from model.outputs import ANOMALY_SCORE, answer_bytes
from transforms import metrics
from transforms.instances import instances, plain_instances
from transforms.remote_http import Connection, TorchServeConnection, VertexConnection
from transforms.remote_limits import Limits
from transforms.remote_protocol import Answer, Contract, RejectedError
from transforms.remote_retry import Caller, CallStats, Part
from transforms.schema import ERROR_RECORDS, SCORES, SCORES_FULL, empty
from transforms.scores import OutputDetail, Scored, ScoreRules, assemble_scores, feature_matrix, unscored

CALLS: Final = "remote_calls"
RETRIES: Final = "remote_retries"
REJECTED: Final = "remote_rejected_calls"
WAITED: Final = "remote_waited_ms"
THROTTLED: Final = "remote_throttled_ms"
ROWS: Final = "remote_rows"
OTHER_VERSION: Final = "remote_rows_of_other_version"
NAMESPACE: Final = "anomaly_inference"
_LOG: Final = logging.getLogger(__name__)


class RemoteModel:
    """A server in place of a model in memory: connection, threads, and the form of its requests."""

    def __init__(
        self,
        connection: Connection,
        contract: Contract,
        limits: Limits,
        caller: Caller,
        ranges: FeatureRanges,
        spec: FeatureSpec = ULB,
    ) -> None:
        self.connection = connection
        self.contract = contract
        self._limits = limits
        self._caller = caller
        self._threads = ThreadPoolExecutor(limits.in_flight, thread_name_prefix="remote-scorer")
        self.warned: set[str] = set()
        self.watch = FeatureWatch(ranges)
        self._spec = spec
        # No __del__: that of a model that lives as long as the process runs when modules are already gone.
        weakref.finalize(self, _close, self._threads, connection)

    def probe(self, any_shape: bool = False) -> None:
        """Asks for the score of a plain transaction, and finds out how the server takes the fields' names.

        So a server that cannot serve at all fails here, and not at the first row.

        Args:
          any_shape: whether a server that lacks fields is used without them, as long as it has the score.

        Raises:
          TransientError: the server does not answer.
          RejectedError: it answers, and not as the serving contract says.
        """
        try:
            self._caller.retry(self._ask_plain, CallStats())
        except RejectedError as first:
            self.contract = replace(self.contract, per_instance=True)
            try:
                self._caller.retry(self._ask_plain, CallStats())
            except RejectedError:
                self.contract = replace(self.contract, per_instance=False)
                if any_shape:
                    self._fit()
                    return
                raise RejectedError(
                    f"{self.connection.name}: does not answer a plain transaction with the fields "
                    f"{', '.join(self.contract.fields)}; is it a server of this model? {first}"
                ) from first

    def _fit(self) -> None:
        """Takes the fields that the server has, by the first form of a request that it answers with a score.

        Raises:
          RejectedError: it answers none.
        """
        forms = [self.contract, replace(self.contract, per_instance=True), replace(self.contract, plain=True)]
        for form in forms:
            body = form.encode(plain_instances(self._spec))

            def fit(form: Contract = form, body: bytes = body) -> Contract:
                response = self.connection.post(body)
                contract = form.fitted(response)
                contract.read(response, 1)
                return contract

            try:
                self.contract = self._caller.retry(fit, CallStats())
            except RejectedError as error:
                refusal = error
            else:
                if self.contract.absent:
                    absent = ", ".join(sorted(self.contract.absent))
                    _LOG.warning(
                        "%s does not answer %s: their columns stay empty", self.connection.name, absent
                    )
                return
        raise RejectedError(
            f"{self.connection.name}: does not answer a plain transaction with a score: {refusal}"
        ) from refusal

    def score(self, instances: Any, stats: CallStats) -> list[Part[Answer]]:
        """Asks for the scores of instances; returns parts in order, which cover every row once.

        Raises:
          TransientError: some request kept failing for a reason that is not in its rows.
        """
        requests = list(self.contract.requests(instances, self._rows(), self._limits.bytes))

        def ask(low: int, high: int) -> Answer:
            return self._ask(instances[low:high])

        def run(low: int, high: int, body: bytes) -> list[Part[Answer]]:
            def call(start: int, stop: int) -> Answer:
                return self._send(body, high - low) if (start, stop) == (low, high) else ask(start, stop)

            return list(self._caller.bisect(low, high, call, stats, self._ask_plain))

        pending = [self._threads.submit(run, *request) for request in requests]
        try:
            return [part for future in pending for part in future.result()]
        finally:
            for future in pending:
                future.cancel()

    def _rows(self) -> int:
        limit = self.connection.answer_limit
        if limit is None:
            return self._limits.rows
        row_bytes = answer_bytes(self.contract.fields, self.contract.n_inputs)
        return max(1, min(self._limits.rows, limit // row_bytes))

    def _ask_plain(self) -> Answer:
        """Asks for the score of a plain transaction, which a server of this model always has."""
        return self._ask(plain_instances(self._spec))

    def _ask(self, instances: Any) -> Answer:
        return self._send(self.contract.encode(instances), len(instances))

    def _send(self, body: bytes, n: int) -> Answer:
        answer = self.contract.read(self.connection.post(body), n)
        if answer.model_version is None:
            return answer._replace(model_version=self.connection.version_of(answer.deployed_model))
        return answer


@dataclass
class RemoteHandler(ModelHandler[pa.RecordBatch, Scored, RemoteModel]):
    """Scores one TRANSACTIONS batch by a server; returns one Scored, as PytorchHandler does.

    Attributes:
      thresholds: the lowest anomaly_score of each alerting severity, from the manifest of the model.
      model_version: written into rows whose answer names no version; an answer's own version wins.
      detail: "compact", or "full" for all outputs of the model.
      limits: how requests are cut, sent and repeated.
      score_field: the field of an answer that is the score.
      any_shape: whether a server is used that does not have all fields.
      ranges: of the features, from the manifest of the model; without them no value is out of range.
      spec: of the model.
      bins: by which some rows are counted; None counts none.
    """

    thresholds: Mapping[str, float]
    model_version: str
    detail: OutputDetail = "compact"
    limits: Limits = field(default_factory=Limits)
    score_field: str = ANOMALY_SCORE
    any_shape: bool = False
    ranges: FeatureRanges = field(default_factory=FeatureRanges, repr=False)
    spec: FeatureSpec = field(default=ULB, repr=False)
    bins: Bins | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """The handler in ASCII: Beam writes it into the graph, and fails for other characters."""
        return ascii(self)

    @abstractmethod
    def connect(self) -> Connection:
        """Opens the connection; runs in the worker."""

    def load_model(self) -> RemoteModel:
        """Connects and asks for one score.

        Raises:
          TransientError: the server cannot be reached or refuses the credentials.
          RejectedError: the server does not keep to the serving contract.
        """
        caller = Caller(self.limits.patience, self.limits.max_retry_after)
        connection = caller.retry(self.connect, CallStats())
        contract = Contract(self.detail, score_field=self.score_field, n_inputs=len(self.spec.inputs))
        model = RemoteModel(connection, contract, self.limits, caller, self.ranges, self.spec)
        model.probe(self.any_shape)
        return model

    def run_inference(
        self,
        batch: pa.RecordBatch | Sequence[pa.RecordBatch],
        model: RemoteModel,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[Scored]:
        """Scores one TRANSACTIONS batch.

        Raises:
          TransientError: the server kept failing; the runner runs the bundle again.
        """
        assert isinstance(batch, pa.RecordBatch)
        stats = CallStats()
        features = feature_matrix(batch)
        try:
            parts = model.score(instances(batch, self.spec), stats)
        finally:
            _count(stats)
        metrics.counter(ROWS).inc(batch.num_rows)
        metrics.add({metrics.VALUES_OUT_OF_RANGE: model.watch.look(features)})
        self._watch_versions(parts, model)
        rules = ScoreRules(self.thresholds, self.model_version, self.detail, self.spec, self.bins)
        return [assemble_parts(batch, parts, rules, time.time_ns() // 1000)]

    def _watch_versions(self, parts: Sequence[Part[Answer]], model: RemoteModel) -> None:
        for part in parts:
            version = part.result and part.result.model_version
            if version and version != self.model_version:
                metrics.counter(OTHER_VERSION).inc(part.stop - part.start)
                if version not in model.warned:
                    model.warned.add(version)
                    _LOG.warning(
                        "%s answers with version %s of the model; thresholds are those of %s (--model)",
                        model.connection.name,
                        version,
                        self.model_version,
                    )

    def get_num_bytes(self, batch: pa.RecordBatch | Sequence[pa.RecordBatch]) -> int:
        """Bytes of the batch; the default would pickle it to find out."""
        assert isinstance(batch, pa.RecordBatch)
        return int(batch.nbytes)

    def get_metrics_namespace(self) -> str:
        """Namespace of RunInference's own metrics."""
        return NAMESPACE

    def should_skip_batching(self) -> bool:
        """True: the element is the batch."""
        return True


@dataclass
class TorchServeHandler(RemoteHandler):
    """Scores by TorchServe.

    Attributes:
      url: base URL of the inference API.
      name: name under which the model is registered.
      version: version to ask for; the server's default version when None.
      key_file: TorchServe's key_file.json, local or gs://; None where tokens are off.
    """

    url: str = "http://127.0.0.1:8080"
    name: str = "pytorch_autoencoder"
    version: str | None = None
    key_file: str | None = None

    def connect(self) -> Connection:
        """Opens the connection to the inference API."""
        limits = self.limits
        return TorchServeConnection(
            self.url, self.name, self.version, self.key_file, limits.in_flight, limits.timeout
        )


@dataclass
class VertexHandler(RemoteHandler):
    """Scores by a Vertex AI endpoint.

    Attributes:
      endpoint: projects/P/locations/L/endpoints/E.
      api_endpoint: base URL of the Vertex AI API other than the regional one.
      psc_address: address of a Private Service Connect endpoint in the workers' network.
    """

    any_shape: bool = True
    endpoint: str = ""
    api_endpoint: str | None = None
    psc_address: str | None = None

    def connect(self) -> Connection:
        """Looks the endpoint up and opens the connection to where it takes predictions."""
        limits = self.limits
        return VertexConnection(
            self.endpoint, limits.in_flight, limits.timeout, self.api_endpoint, self.psc_address
        )


def assemble_parts(
    batch: pa.RecordBatch, parts: Sequence[Part[Answer]], rules: ScoreRules, scored_at: int
) -> Scored:
    """Joins a TRANSACTIONS batch with the parts of its answer; rows without a result become dead letters.

    Args:
      batch: n rows.
      parts: cover the n rows once, in order.
      rules: thresholds, detail, and the version for parts that name none.
      scored_at: microseconds since the epoch.
    """
    scores, dead = [], []
    samples: list[Sample] = []
    for run in _runs(parts, rules.model_version):
        rows = batch.slice(run[0].start, run[-1].stop - run[0].start)
        if run[0].result is None:
            dead.append(unscored(rows, [f"remote scorer: {part.reason}" for part in run], rules.spec))
            continue
        answers = [part.result for part in run if part.result is not None]
        outputs = {
            name: np.concatenate([answer.outputs[name] for answer in answers]) for name in answers[0].outputs
        }
        version = answers[0].model_version or rules.model_version
        scored = assemble_scores(rows, outputs, replace(rules, model_version=version), scored_at)
        scores.append(scored.scores)
        dead.append(scored.dead_letters)
        samples += scored.samples
    if not scores:
        scores.append(empty(SCORES_FULL if rules.detail == "full" else SCORES))
    if not dead:
        dead.append(empty(ERROR_RECORDS))
    return Scored(pa.concat_batches(scores), pa.concat_batches(dead), tuple(samples))


def _close(threads: ThreadPoolExecutor, connection: Connection) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    connection.close()


def _runs(parts: Sequence[Part[Answer]], default: str) -> list[list[Part[Answer]]]:
    """Neighbouring parts that have the same version, or no result, together."""

    def kind(part: Part[Answer]) -> str | None:
        return None if part.result is None else part.result.model_version or default

    runs: list[list[Part[Answer]]] = []
    for part in parts:
        if runs and kind(runs[-1][-1]) == kind(part):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _count(stats: CallStats) -> None:
    metrics.add(
        {
            CALLS: stats.calls,
            RETRIES: stats.retries,
            REJECTED: stats.rejected,
            WAITED: stats.waited * 1000,
            THROTTLED: stats.throttled * 1000,
        }
    )
    if stats.throttled >= 1:
        # Dataflow's autoscaler reads it: more workers would not help an overloaded server.
        ThrottlingSignaler(NAMESPACE).signal_throttled(int(stats.throttled))
