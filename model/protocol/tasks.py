"""Tasks of the protocol: the score, or one family of baselines, on one split. A file keeps a done one."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from common.writing import write_text
from model import baselines, data, fitting, inference, metrics, torchscript
from model.dataset import fingerprint
from model.outputs import ANOMALY_SCORE, CONTRIBUTIONS
from model.protocol import detectors, splits, tops
from model.threads import one_thread

MODEL: Final = Path(baselines.__file__).parent
SCORE: Final = "score"


@dataclass(frozen=True)
class Task:
    """One piece of work that is done and kept as a whole.

    Attributes:
      kind: of the split.
      number: of the split.
      family: SCORE, or one of `detectors.FAMILIES`.
      seed: of the training; 0 for baselines.
    """

    kind: splits.SplitKind
    number: int
    family: str
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Job:
    """All that a task needs.

    Attributes:
      dataset: labelled rows.
      prevalence: share of frauds that the figures are weighted to.
      training: options of the training that are not the usual ones.
    """

    dataset: data.Dataset
    prevalence: float
    training: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def identity(self) -> str:
        """Tells the data, and the options that every task shares."""
        return f"{fingerprint(self.dataset)} {self.prevalence!r} {sorted(self.training.items())}"

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a job lives as long as its process
    def split(self, kind: splits.SplitKind, number: int) -> splits.JudgedSplit:
        """Makes a split, once for the tasks that follow each other."""
        return splits.split(self.dataset, kind, number)

    def key(self, task: Task) -> str:
        """Identifies the result of a task: by its rows, its options, and the code that makes it."""
        digest = self.split(task.kind, task.number).digest
        parts = [self.identity, digest, task.family, str(task.seed), *_code(task.family == SCORE)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _code(is_score: bool) -> tuple[str, ...]:
    """Tells the code: baselines stay valid where the score alone has changed."""
    if is_score:
        paths = [*sorted(MODEL.glob("*.py")), Path(tops.__file__)]
    else:
        paths = [Path(baselines.__file__), Path(detectors.__file__)]
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    return sources, metadata.version("scikit-learn"), metadata.version("torch") if is_score else ""


def tasks(kinds: Sequence[splits.SplitKind], n_splits: int, seeds: int) -> list[Task]:
    """Lists the tasks split by split, so that a cut run leaves whole splits."""
    return [
        task
        for number in range(n_splits)
        for kind in kinds
        for task in (
            *(Task(kind, number, SCORE, seed) for seed in range(seeds)),
            *(Task(kind, number, family) for family in detectors.FAMILIES),
        )
    ]


def run(
    job: Job, todo: Sequence[Task], directory: Path, processes: int, advance: Callable[[int], None]
) -> dict[Task, dict[str, Any]]:
    """Does the tasks that are not kept in the directory yet, and keeps each as soon as it is done.

    Args:
      job: the data and the options.
      todo: the tasks.
      directory: of the results, one JSON file a task.
      processes: that work at once, each with one thread.
      advance: is called with 1 for each task.
    """
    results: dict[Task, dict[str, Any]] = {}
    missing: list[Task] = []
    for task in todo:
        kept = _read(_path(job, task, directory))
        if kept is None:
            missing.append(task)
        else:
            results[task] = kept
            advance(1)
    for task, result in _do(job, missing, processes):
        path = _path(job, task, directory)
        part = path.with_suffix(f".part-{os.getpid()}")
        write_text(part, json.dumps(result) + "\n", "--output")
        part.replace(path)
        results[task] = result
        advance(1)
    return results


def _do(job: Job, missing: Sequence[Task], processes: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    if processes == 1 or len(missing) < 2:
        for task in missing:
            yield task, perform(job, task)
        return
    # Forked processes would share the threads of BLAS, which do not survive it.
    with ProcessPoolExecutor(processes, get_context("spawn"), _set_job, (job,)) as pool:
        futures = {pool.submit(_perform, task): task for task in missing}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_jobs: list[Job] = []


def _set_job(job: Job) -> None:
    _jobs[:] = [job]


def _perform(task: Task) -> dict[str, Any]:
    return perform(_jobs[0], task)


@one_thread()
def perform(job: Job, task: Task) -> dict[str, Any]:
    """Does one task; its result as JSON values: figures by detector, and of the score the highest normals."""
    # scikit-learn is needed to judge, not to score.
    from sklearn.exceptions import ConvergenceWarning

    judged_split = job.split(task.kind, task.number)
    dataset = job.dataset
    train = judged_split.train[dataset.is_normal[judged_split.train]]
    dataset = dataset.learning_from(train)
    result: dict[str, Any] = {"frauds": int((~dataset.is_normal[judged_split.judged]).sum())}
    if task.family == SCORE:
        return result | _score(job, dataset, judged_split, train, task.seed)
    prepare = baselines.standardiser(dataset.features[train], dataset.spec)
    chooser, judged = judged_split.validation, judged_split.judged
    rows = prepare(dataset.features[np.concatenate([chooser, judged])])
    labels = (~dataset.is_normal).astype(np.int8)
    family, entries = detectors.FAMILIES[task.family], []
    try:
        prepared = prepare(dataset.features[train])
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            scored = list(family(prepared, rows, judged_split.number))
        for name, setting, seed, scores in scored:
            if not np.isfinite(scores).all():
                raise ValueError("its scores are not finite")
            entry = {"name": name, "setting": setting, "seed": seed, "validation": None}
            if 0 < labels[chooser].sum() < len(chooser):
                chosen_by = _figures(job, scores[: len(chooser)], labels[chooser])
                entry["validation"] = chosen_by["average_precision"]
            entries.append(entry | _figures(job, scores[len(chooser) :], labels[judged]))
    except Exception as error:  # a detector that cannot run on this data must not cost the others
        result["left_out"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return result | {"entries": entries}


def _score(
    job: Job, dataset: data.Dataset, judged_split: splits.JudgedSplit, train: splits.Numbers, seed: int
) -> dict[str, Any]:
    """Trains the product's score as `anomaly train` does, and judges it."""
    validation = judged_split.validation[dataset.is_normal[judged_split.validation]]
    # Seeds of a split do not repeat those of another one.
    options = fitting.TrainingOptions(**{"seed": 1000 * seed + judged_split.number, **job.training})
    options = options.suited_to(True, dataset.spec)
    network = fitting.fit(
        dataset.features[train], dataset.features[validation], options, progress=False, spec=dataset.spec
    ).network
    rows = dataset.features[judged_split.judged]
    fields = (ANOMALY_SCORE, CONTRIBUTIONS)
    named = inference.outputs(torchscript.trace(network), rows, fields)
    scores = named[ANOMALY_SCORE].astype(np.float64)
    labels = (~dataset.is_normal[judged_split.judged]).astype(np.int8)
    entry = {"name": ANOMALY_SCORE, "setting": "", "seed": seed, **_figures(job, scores, labels)}
    return {
        "rows": {"train": len(train), "validation": len(validation), "judged": len(rows)},
        "cut": judged_split.cut,
        "entries": [entry],
        "top_normals": tops.top_normals(
            dataset, judged_split.judged, train, scores, named[CONTRIBUTIONS], labels, job.prevalence
        ),
    }


def _figures(job: Job, scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int8]) -> dict[str, Any]:
    return metrics.figures(scores, labels, job.prevalence)


def _path(job: Job, task: Task, directory: Path) -> Path:
    name = f"{task.kind}-{task.number:02}-{task.family}-{task.seed}-{job.key(task)}.json"
    return directory / name


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
