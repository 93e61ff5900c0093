"""Scoring of TRANSACTIONS record batches through RunInference."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from apache_beam.ml.inference.base import ModelHandler, RunInference

import transforms.coder  # noqa: F401  registers the coder of record batches
from features.ranges import FeatureWatch
from model import artifact, inference
from model.few_rows import FewRows, few_rows
from model.live import Event, Follower, ForeignError, Live, check_spec, first
from model.outputs import ANSWER_FIELDS, SCORE_FIELDS
from model.thresholds import check_thresholds
from transforms import metrics
from transforms.forms import Encoding
from transforms.learnt_inputs import LearntInputs
from transforms.observations import Observer, letter_counters
from transforms.parse import DEAD_LETTER_TAG, two_outputs
from transforms.profiles import CollectProfiles
from transforms.scores import (
    OutputDetail,
    Scored,
    ScoreRules,
    assemble_scores,
    feature_matrix,
)
from transforms.shadow import Shadow

_COUNTERS: Final[Mapping[Event, str]] = {
    "refreshed": metrics.MODEL_REFRESHES,
    "refused": metrics.MODEL_REFUSALS,
}
_MODEL_AGE: Final = metrics.distribution(metrics.MODEL_AGE)


class ScoreOutput(NamedTuple):
    """Output of Score: SCORES and ERROR_RECORDS batches; with profiles one of FEATURE_PROFILES batches."""

    scores: beam.PCollection
    dead_letters: beam.PCollection
    profiles: tuple[beam.PCollection, ...] = ()


@dataclass
class Score(beam.PTransform):
    """Scores transactions.

    TRANSACTIONS batch  ->  SCORES batch  +  ERROR_RECORDS batch  (+  FEATURE_PROFILES batch)

    Attributes:
      handler: scores one TRANSACTIONS batch and returns one Scored; PytorchHandler, or a remote one.
      profiles: counts the samples that the handler takes; None where it takes none.
    """

    handler: ModelHandler
    profiles: CollectProfiles | None = None

    def expand(self, transactions: beam.PCollection) -> ScoreOutput:
        """Transactions to scores, dead letters and profiles."""
        scored = transactions | RunInference(self.handler)
        profiles = (scored | "Profile" >> self.profiles,) if self.profiles else ()
        scores, dead_letters = scored | two_outputs(_SplitFn())
        return ScoreOutput(scores, dead_letters, profiles)


@dataclass
class LoadedModel:
    """A model in memory, the rules that turn its outputs into rows, and the watch over its inputs.

    Attributes:
      module: the network.
      rules: thresholds, version and detail.
      watch: over the inputs.
      encode: makes the inputs, where this model learnt other numbers of the features than that of the launch.
      few: the same network for few rows.
      since: seconds of a steady clock at which this process had it.
    """

    module: torch.jit.ScriptModule
    rules: ScoreRules
    watch: FeatureWatch
    encode: LearntInputs | None = None
    few: FewRows | None = None
    since: float = field(default_factory=time.monotonic)

    def inputs(
        self, batch: pa.RecordBatch, features: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """The inputs of the model for a TRANSACTIONS batch, whose features may be at hand."""
        if self.encode is not None:
            return self.encode(batch)
        return feature_matrix(batch) if features is None else features

    def outputs(self, features: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """The model's outputs by name for raw features [n, 30]."""
        inference.use_one_thread()
        return inference.outputs(self.module, features, self.fields, self.few)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the outputs that the rows need."""
        return ANSWER_FIELDS if self.rules.detail == "full" else SCORE_FIELDS


class WorkerModel(Live[LoadedModel]):
    """The model of a worker process, and the one that scores beside it, if there is one."""

    shadow: Shadow | None = None


@dataclass
class PytorchHandler(ModelHandler[pa.RecordBatch, Scored, WorkerModel]):
    """The model in the worker: a verified artifact, as frozen TorchScript, on one thread.

    The element is a batch already, so RunInference's own batching is skipped, and its metrics count rows.

    Attributes:
      model: directory of the artifact, local or gs://.
      detail: "compact", or "full" for all outputs of the model.
      thresholds: replaces the manifest's thresholds of the severities named in it.
      digest: of the manifest at launch; a worker that finds another refuses it. "" takes any.
      refresh_seconds: between two looks at the artifact for a new model; 0 keeps the first.
      encoding: the one by which batches were parsed. A model of other features is refused, and one that
        learnt other numbers of them encodes again. None takes any.
      profile_every: each so-manieth row is taken for the profile of the features; 0 takes none.
      shadow: directory of an artifact that scores beside the first, for comparison.
    """

    model: str
    detail: OutputDetail = "compact"
    thresholds: dict[str, float] = field(default_factory=dict)
    digest: str = ""
    refresh_seconds: float = 0
    encoding: Encoding | None = field(default=None, repr=False)
    profile_every: int = 0
    shadow: str | None = None

    def __str__(self) -> str:
        """The handler in ASCII: Beam writes it into the graph, and fails for other characters."""
        return ascii(self)

    def load_model(self) -> WorkerModel:
        """Reads and verifies the artifact, and runs it a few times, since the first calls compile.

        Raises:
          model.artifact.ReplacedError: it is another artifact than at launch.
          model.artifact.ArtifactError: the artifact is incomplete or altered, or for other features; where a
            new one is looked for, that in `previous/` as well.
        """
        loaded, digest = first(self.model, self._load, self.digest, self.refresh_seconds > 0)
        live = WorkerModel(loaded)
        if self.shadow:
            live.shadow = Shadow(self.shadow, self._load, self.refresh_seconds)
        # Modules and model live as long as the worker. Without this the garbage collector, which the many
        # short-lived objects of parsing set going, would look through all of them again and again.
        gc.collect()
        gc.freeze()
        if self.refresh_seconds:
            live.follow(Follower(self.model, self._load, digest), self.refresh_seconds)
        return live

    def _load(self, found: artifact.Artifact) -> LoadedModel:
        manifest, encode = found.manifest, None
        if self.encoding is not None:
            check_spec(found, self.encoding.spec, "the running job; launch it again to score with it")
            if manifest.learnt != self.encoding.learnt:
                encode = LearntInputs(manifest.spec, manifest.learnt)
        thresholds = {**manifest.thresholds, **self.thresholds}
        try:
            check_thresholds(thresholds)
        except ValueError as error:
            raise ForeignError(
                f"{found.uri}: version {manifest.model_version}: with those of the options, {error}"
            ) from error
        bins = manifest.bins(self.profile_every) if self.profile_every else None
        rules = ScoreRules(thresholds, manifest.model_version, self.detail, manifest.spec, bins)
        module = found.load_model()
        loaded = LoadedModel(module, rules, FeatureWatch(manifest.ranges), encode, few_rows(module))
        inference.use_one_thread()
        inference.warm_up(loaded.module, loaded.fields, len(manifest.spec.inputs))
        return loaded

    def run_inference(
        self,
        batch: pa.RecordBatch | Sequence[pa.RecordBatch],
        model: WorkerModel,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[Scored]:
        """Scores one TRANSACTIONS batch by the model that is the current one at its begin."""
        assert isinstance(batch, pa.RecordBatch)
        loaded = model.current
        # Two models share one copy: torch takes no view of an Arrow buffer.
        matrix = feature_matrix(batch).copy() if model.shadow else None
        features = loaded.inputs(batch, matrix)
        if n_outside := loaded.watch.look(features):
            metrics.add({metrics.VALUES_OUT_OF_RANGE: n_outside})
        if events := model.take_events():
            metrics.add({_COUNTERS[event]: n for event, n in events.items()})
        _MODEL_AGE.update(int(time.monotonic() - loaded.since))
        outputs = loaded.outputs(features)
        shadow = model.shadow.columns(batch, matrix) if model.shadow else None
        return [assemble_scores(batch, outputs, loaded.rules, time.time_ns() // 1000, features, shadow)]

    def get_num_bytes(self, batch: pa.RecordBatch | Sequence[pa.RecordBatch]) -> int:
        """Bytes of the batch; the default would pickle it to find out."""
        assert isinstance(batch, pa.RecordBatch)
        return int(batch.nbytes)

    def get_metrics_namespace(self) -> str:
        """Namespace of RunInference's own metrics."""
        return "anomaly_inference"

    def should_skip_batching(self) -> bool:
        """True: the element is the batch."""
        return True


class _SplitFn(beam.DoFn):
    def __init__(self) -> None:
        self._scored = metrics.counter(metrics.ROWS_SCORED)
        self._dead = metrics.counter(metrics.DEAD_LETTERS)
        self._observer = Observer()

    def process(self, element: Scored) -> Iterable[pa.RecordBatch]:
        self._scored.inc(element.scores.num_rows)
        self._observer.add(element.scores)
        if element.scores.num_rows:
            yield element.scores
        if element.dead_letters.num_rows:
            self._dead.inc(element.dead_letters.num_rows)
            metrics.add(letter_counters(element.dead_letters))
            yield beam.pvalue.TaggedOutput(DEAD_LETTER_TAG, element.dead_letters)
