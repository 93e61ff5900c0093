"""One thread where the matrices are small: more of them wait for each other longer than they compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch, BLAS and OpenMP to one thread each, and restores their threads at the end.

    Training takes steps of a few hundred rows, and a robust covariance thousands of 29 x 29 matrices. On two
    busy cores a second thread makes both several times slower; on two idle ones it gains nothing.
    """
    # Both come with scikit-learn, which training and baselines need and scoring does not. It goes first: only
    # libraries that are loaded can be limited.
    import sklearn.covariance  # noqa: F401
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)
