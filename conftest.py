"""Settings and fixtures that hold for every test."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from common.loopback import bypass_proxies

# Tests talk to servers on this machine, by Google's clients, too, and in child processes.
bypass_proxies()

# `make test PYTHON=...` tells it to every make below; a test that runs make means the defaults.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "TORCH", "VENV"):
    os.environ.pop(name, None)

# A shell starts `make test &` with Ctrl+C ignored, and so would every child process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure: no deadlines, and the same examples in every run of CI.
settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a model trained for two epochs on random transactions: quick, and real."""
    from model.data import Dataset
    from model.fitting import TrainingOptions
    from model.train import train

    random = np.random.default_rng(7)
    features = random.normal(size=(6_000, 30))
    features[:, 0] = random.uniform(0, 172_800, 6_000)
    features[:, -1] = random.lognormal(3, 1, 6_000)
    path = tmp_path_factory.mktemp("model")
    dataset = Dataset(features.astype(np.float32), None, {"source": "random"})
    train(dataset, str(path), options=TrainingOptions(epochs=2), model_version="test-1", progress=False)
    return path
