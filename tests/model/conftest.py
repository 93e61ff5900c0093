"""A small model, trained once for all tests of this package by the real command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import artifact, package, train
from model.network import TransactionAutoencoder
from model.synthetic.generator import TransactionGenerator

torch.set_num_threads(1)
ROWS, EPOCHS = 12_000, 6


@pytest.fixture(scope="session")
def trained_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact directory that `anomaly train` wrote."""
    directory = tmp_path_factory.mktemp("model") / "artifact"
    arguments = ["--output", str(directory), "--rows", str(ROWS), "--epochs", str(EPOCHS)]
    assert train.main([*arguments, "--model_version", "test-1"]) == 0
    return directory


@pytest.fixture(scope="session")
def trained(trained_dir: Path) -> artifact.Artifact:
    return artifact.read(trained_dir)


@pytest.fixture(scope="session")
def module(trained: artifact.Artifact) -> torch.jit.ScriptModule:
    """The trained model as servers and pipelines load it."""
    return trained.load_model()


@pytest.fixture(scope="session")
def network(trained: artifact.Artifact) -> TransactionAutoencoder:
    """The trained model in eager mode."""
    return package.eager(trained.load_model(freeze=False))


@pytest.fixture(scope="session")
def normals() -> np.ndarray:
    """Normal transactions that the model was not trained on, float32 [3000, 30]."""
    features, labels = TransactionGenerator(seed=99, fraud_share=0.0).features(3000)
    assert not labels.any()
    return np.asarray(features, dtype=np.float32)
