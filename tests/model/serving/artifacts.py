"""A small artifact to serve: the real network with fixed random weights, written by the real writer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from features.declaration import FeatureSpec
from features.learnt import Learnt
from features.ulb import AMOUNT_INDEX, FEATURES, N_FEATURES, TIME_INDEX
from model import artifact, package, torchscript
from model.network import TransactionAutoencoder
from model.thresholds import ScoreQuantiles, calibrate

VERSION = "20260101.120000"


def build_artifact(directory: Path, version: str = VERSION, seed: int = 7) -> artifact.Artifact:
    """Writes an artifact into `directory`, with an archive where the archiver is installed.

    Another seed makes another model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TransactionAutoencoder()
        mean, std = torch.zeros(N_FEATURES), torch.ones(N_FEATURES)
        mean[TIME_INDEX], std[TIME_INDEX] = 94_000.0, 47_000.0
        mean[AMOUNT_INDEX], std[AMOUNT_INDEX] = 88.0, 250.0
        network.set_normalisation(mean, std)
        noise = torch.randn(N_FEATURES, N_FEATURES)
        network.set_whitening(torch.randn(N_FEATURES) / 10, torch.eye(N_FEATURES) + noise / 20)
    module = torchscript.trace(network)
    with torch.no_grad():
        scores = module.score(torch.from_numpy(transactions(2000)))[0].numpy()
    quantiles = ScoreQuantiles.of(scores)
    manifest = artifact.Manifest(
        model_name=artifact.MODEL_NAME,
        model_version=version,
        features=FEATURES,
        thresholds=calibrate(quantiles),
        quantiles=quantiles,
    )
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / artifact.MODEL_FILE
        torchscript.save(module, path)
        files = [path]
        if package.archive_available():
            files.append(package.write_archive(path, Path(temporary), version))
        return artifact.write(directory, manifest, files)


def build_own_artifact(
    directory: Path, spec: FeatureSpec, learnt: Learnt, seed: int = 7
) -> artifact.Artifact:
    """Writes an artifact of own features into `directory`, without an archive."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TransactionAutoencoder(spec)
        n = len(spec.inputs)
        network.set_normalisation(torch.zeros(n), torch.ones(n))
        network.set_whitening(torch.zeros(n), torch.eye(n))
    module = torchscript.trace(network)
    with torch.no_grad():
        scores = module.score(torch.from_numpy(np.random.default_rng(0).normal(size=(2000, n)).astype("f4")))
    quantiles = ScoreQuantiles.of(scores[0].numpy())
    manifest = artifact.Manifest(
        model_name=artifact.MODEL_NAME,
        model_version=VERSION,
        features=spec.names,
        thresholds=calibrate(quantiles),
        quantiles=quantiles,
        spec=spec,
        learnt=learnt,
    )
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / artifact.MODEL_FILE
        torchscript.save(module, path)
        return artifact.write(directory, manifest, [path])


def transactions(n: int, seed: int = 0) -> np.ndarray:
    """Raw features in plausible ranges, float32 [n, 30]."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, N_FEATURES)) * 2
    features[:, TIME_INDEX] = rng.uniform(0, 172_792, n)
    features[:, AMOUNT_INDEX] = rng.lognormal(3, 1.5, n)
    return features.astype(np.float32)


def build_models(root: Path, versions: str) -> Path:
    """Writes an artifact of each version, a letter, to a directory of its name; another network each."""
    for seed, version in enumerate(versions):
        build_artifact(root / version, version, seed=seed)
    return root
