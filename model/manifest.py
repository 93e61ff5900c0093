"""The manifest of an artifact: what the model is, its thresholds, and what it learnt of its features."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from common.command import CommandError
from common.names import MODEL, SHA256
from features.declaration import FeatureSpec
from features.default import ULB
from features.learnt import NOTHING, Learnt
from features.profiles import Bins, check_shares, edges_of, nominal_shares
from features.ranges import PROBABILITIES, FeatureRanges, Quantiles, check_quantiles
from model.outputs import ANOMALY_SCORE
from model.thresholds import ScoreQuantiles, check_thresholds

MANIFEST_FILE: Final = "manifest.json"
MODEL_FILE: Final = "final_model_traced.pt"
FORMAT: Final = 2
_OF_ULB: Final = 1
"""Before feature specs: a model of the default one."""


class ArtifactError(CommandError, ValueError):
    """The artifact is incomplete, damaged, or was made for other features."""


def _by_input(raw: Mapping[str, Any], key: str) -> dict[str, tuple[float, ...]]:
    return {str(name): tuple(map(float, values)) for name, values in raw.get(key, {}).items()}


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
      model_name: name under which servers register the model.
      model_version: version of this trained model; it travels with every score.
      features: names of the features of `spec`, in order.
      thresholds: severity -> score from which on a transaction has it.
      quantiles: quantile function of the score on held-out normals.
      files: file name -> sha256, lower-case hexadecimal.
      training: seed, settings and course of the training.
      provenance: where the training data came from.
      figures: the measures of `anomaly evaluate`, on the test split.
      feature_quantiles: of each input among the training rows, at `features.ranges.PROBABILITIES`; empty in
        an older manifest.
      feature_shares: share of the training rows in each bin between these quantiles, by input; see
        `features.profiles`. Empty in an older manifest.
      missing_shares: share of the training rows without a value, by feature; of those that may lack one.
      versions: versions of Python, torch and this package.
      spec: the features that the model sees.
      learnt: what training learnt of them: rarities of categories, medians.
      digest: sha256 of the text that the manifest was read from, which names the model and is no part of the
        text; "" where it was not read.
    """

    model_name: str
    model_version: str
    features: tuple[str, ...]
    thresholds: Mapping[str, float]
    quantiles: ScoreQuantiles
    files: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    feature_quantiles: Quantiles = field(default_factory=dict)
    feature_shares: Quantiles = field(default_factory=dict)
    missing_shares: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    spec: FeatureSpec = ULB
    learnt: Learnt = NOTHING
    digest: str = field(default="", compare=False)

    def to_json(self) -> str:
        """The manifest as JSON text, keys in a stable order."""
        content = {"format": FORMAT, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}
        del content["digest"]
        content |= {
            "quantiles": dataclasses.asdict(self.quantiles),
            "spec": self.spec.to_json(),
            "learnt": self.learnt.to_json(),
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Parses and checks manifest text.

        Raises:
          ArtifactError: not JSON, a field missing or of the wrong kind, another feature order, or thresholds
            that do not cover the severities or are not finite and ascending.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise ArtifactError(f"{MANIFEST_FILE} is not valid JSON: {e}") from e
        if not isinstance(raw, dict) or raw.get("format") not in (_OF_ULB, FORMAT):
            raise ArtifactError(f"{MANIFEST_FILE}: expected an object with format {FORMAT}")
        own = raw["format"] == FORMAT
        try:
            manifest = cls(
                model_name=str(raw["model_name"]),
                model_version=str(raw["model_version"]),
                features=tuple(raw["features"]),
                thresholds={str(k): float(v) for k, v in raw["thresholds"].items()},
                quantiles=ScoreQuantiles(
                    tuple(map(float, raw["quantiles"]["probabilities"])),
                    tuple(map(float, raw["quantiles"]["scores"])),
                ),
                **{k: dict(raw[k]) for k in ("files", "training", "provenance", "figures", "versions")},
                feature_quantiles=_by_input(raw, "feature_quantiles"),
                feature_shares=_by_input(raw, "feature_shares"),
                missing_shares={str(k): float(v) for k, v in raw.get("missing_shares", {}).items()},
                spec=FeatureSpec.from_json(raw["spec"]) if own else ULB,
                learnt=Learnt.from_json(raw["learnt"]) if own else NOTHING,
                digest=hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest(),
            )
        except KeyError as e:
            raise ArtifactError(f"{MANIFEST_FILE}: field {e.args[0]!r} is missing") from e
        except (TypeError, ValueError, AttributeError, OverflowError) as e:
            raise ArtifactError(f"{MANIFEST_FILE}: {e}") from e
        manifest.check()
        return manifest

    @property
    def ranges(self) -> FeatureRanges:
        """The ranges of the inputs by which a feed in other units is known.

        Times of the day and of the week have none: a feed has its hours, and is no other one for that.
        History has none: a stream may begin with new accounts alone.
        """
        computed = {feature.name for feature in self.spec.history}
        quantiles = {name: values for name, values in self._profiled().items() if name not in computed}
        return FeatureRanges(self.spec.inputs, quantiles)

    def _profiled(self) -> Quantiles:
        """The quantiles of the inputs that are in the score; the others may take any value."""
        constant = self.training.get("constant_features", ())
        watched = {
            name
            for name, group, is_scored in zip(
                self.spec.inputs, self.spec.groups, self.spec.is_scored, strict=True
            )
            if is_scored and name not in constant and self.spec.features[group].rules.value != "time"
        }
        return {name: values for name, values in self.feature_quantiles.items() if name in watched}

    def bins(self, every: int) -> Bins:
        """Makes the bins by which each `every`-th row is counted: of the watched inputs, and of the score."""
        quantiles = self._profiled()
        names = [name for name in self.spec.inputs if name in quantiles]
        scores = np.interp(PROBABILITIES, self.quantiles.probabilities, self.quantiles.scores).tolist()
        shares = [self.feature_shares.get(name) or nominal_shares(quantiles[name]) for name in names]
        return Bins(
            (*names, ANOMALY_SCORE),
            np.array([self.spec.inputs.index(name) for name in names], np.intp),
            edges_of([*(quantiles[name] for name in names), scores]),
            np.array([*shares, nominal_shares(scores)]),
            self.missing_shares,
            every,
        )

    def check(self) -> None:
        """Checks that features, thresholds, files and names fit; raises ArtifactError."""
        if self.features != self.spec.names:
            pairs = enumerate(zip(self.features, self.spec.names, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), None)
            where = (
                f"first difference at position {at}" if at is not None else f"{len(self.features)} of them"
            )
            raise ArtifactError(
                f"{MANIFEST_FILE}: features differ from those of the feature spec ({where}); "
                "train the model again with this version of the package"
            )
        try:
            self.learnt.check(self.spec)
            check_thresholds(self.thresholds)
            check_quantiles(self.spec.inputs, self.feature_quantiles)
            check_shares(self.feature_quantiles, self.feature_shares)
        except ValueError as e:
            raise ArtifactError(f"{MANIFEST_FILE}: {e}; train the model again") from e
        if MODEL_FILE not in self.files:
            raise ArtifactError(f"{MANIFEST_FILE}: files does not list {MODEL_FILE}")
        for name, digest in self.files.items():
            is_plain = Path(name).name == name and name.isprintable()
            if not is_plain or name in ("", ".", "..", MANIFEST_FILE):
                raise ArtifactError(f"{MANIFEST_FILE}: {name!r} is not a plain file name")
            if problem := SHA256.problem(str(digest)):
                raise ArtifactError(f"{MANIFEST_FILE}: files: sha256 of {name}: {problem}")
        # They become names of files, of models at servers, and labels.
        for field_name, value in (("model_name", self.model_name), ("model_version", self.model_version)):
            if problem := MODEL.problem(value):
                raise ArtifactError(f"{MANIFEST_FILE}: {field_name}: {problem}")
