"""Runs the protocol on labelled transactions, from its options to its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from common.options import option
from common.output import progress
from common.values import at_least
from model import data
from model.protocol import statistics, tasks
from model.protocol.splits import SplitKind, sample, usual_kinds

MAX_ROWS: Final = 100_000


@dataclass(frozen=True)
class ProtocolOptions:
    """Options of `--protocol repeated`.

    Attributes:
      training: options of the training that are not the usual ones.
    """

    splits: int = option(
        20,
        type=at_least(2),
        metavar="N",
        help="splits of each kind; fewer than 20 say little (default: %(default)s)",
    )
    by: SplitKind | None = option(
        None,
        help="by row, or by time, where the first 40 to 60 %% of the rows train and the rest is judged "
        "(default: both; by time alone for features with a history, by row alone without times)",
    )
    seeds: int = option(
        1,
        type=at_least(1),
        metavar="N",
        help="trainings of the score a split; 2 and more show its spread by seed (default: %(default)s)",
    )
    max_rows: int = option(
        MAX_ROWS,
        type=at_least(data.MIN_NORMALS),
        metavar="N",
        help="rows at most, drawn at random; frauds first, up to a tenth of them (default: %(default)s)",
    )
    processes: int = option(
        1, type=at_least(1), metavar="N", help="processes at work, one thread each (default: %(default)s)"
    )
    output: Path | None = option(
        None,
        type=Path,
        metavar="DIR",
        help="keep each result here as soon as it is done: the same command again does what is missing alone",
    )
    training: Mapping[str, Any] = field(default_factory=dict)


def judge(
    dataset: data.Dataset, options: ProtocolOptions, prevalence: float, seed: int = 0
) -> dict[str, Any]:
    """Judges the score on repeated splits; the report has what `statistics.summarise` returns for each kind.

    Args:
      dataset: labelled transactions.
      options: of the protocol.
      prevalence: share of frauds that the figures are weighted to.
      seed: of the sample of max_rows rows.

    Raises:
      DataError: the data cannot be split so.
    """
    kinds = (options.by,) if options.by else usual_kinds(dataset)
    dataset = sample(dataset, options.max_rows, seed)
    job = tasks.Job(dataset, prevalence, options.training)
    # All splits are made before hours of work that a later one could cost.
    todo = tasks.tasks(kinds, options.splits, options.seeds)
    for task in todo:
        job.key(task)
    with TemporaryDirectory() as temporary, progress(len(todo), "tasks") as advance:
        directory = options.output or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        results = tasks.run(job, todo, directory, options.processes, advance)
    return {
        "protocol": "repeated",
        "prevalence": prevalence,
        "kinds": {kind: statistics.summarise(results, kind) for kind in kinds},
    }
