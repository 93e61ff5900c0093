"""Training and evaluation data: sources, checks, and the split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.command import CommandError
from common.options import option
from common.values import at_least, location
from features import reading
from features.declaration import FeatureSpec
from features.default import ULB
from features.ulb import TIME_INDEX
from model.dataset import DataError, Dataset, from_arrow, used_columns
from model.thresholds import MIN_CALIBRATION_ROWS

SYNTHETIC: Final = "synthetic"
BIGQUERY_SCHEME: Final = "bigquery://"
SYNTHETIC_ROWS: Final = 40_000
SYNTHETIC_FRAUD_SHARE: Final = 0.01
SPLIT_SHARES: Final = (0.6, 0.2, 0.2)
"""Training, validation (early stopping, thresholds) and test."""
SplitBy = Literal["random", "time"]
MIN_NORMALS: Final = 5_000
"""A fifth of the normals calibrates the thresholds; fewer than 1,000 cannot place a budget of 0.1 %."""


@dataclass(frozen=True)
class DataOptions:
    """The labelled or unlabelled transactions to train or judge on."""

    data: str = option(
        SYNTHETIC,
        metavar="SOURCE",
        type=location,
        help="CSV, JSON lines or Parquet with the columns of --features, as a file, pattern or directory, "
        f"local or gs://; {BIGQUERY_SCHEME}project.dataset.table; or {SYNTHETIC} (default: %(default)s)",
    )
    features: str | None = option(
        None,
        metavar="FILE",
        help="feature spec in YAML (default: that of the ULB table: Time, V1..V28, Amount, and Class where "
        "it is labelled)",
    )
    label_column: str | None = option(
        None,
        metavar="NAME",
        help="column with 1 or true for a fraud; empty to train as if nothing were labelled "
        "(default: the label of the feature spec, Class for ULB)",
    )
    kind_column: str | None = option(
        None,
        metavar="NAME",
        help="column that names the kind of each fraud, for figures by kind; it is no input of the model",
    )
    rows: int = option(
        SYNTHETIC_ROWS, type=at_least(1), metavar="N", help="synthetic rows to draw (default: %(default)s)"
    )
    seed: int = option(
        0,
        type=at_least(0),
        metavar="N",
        help="of synthetic data, split, weights and baselines (default: %(default)s)",
    )

    @property
    def spec(self) -> FeatureSpec:
        """The feature spec of the file, otherwise that of the ULB table.

        Raises:
          SpecFileError: the file cannot be read or breaks a rule.
        """
        return ULB if self.features is None else reading.read(self.features)


@dataclass(frozen=True)
class Split:
    """Row numbers of the three disjoint parts.

    Attributes:
      train, validation, test: the row numbers.
      copies: rows that are equal to another one, beyond the first.
    """

    train: npt.NDArray[np.intp]
    validation: npt.NDArray[np.intp]
    test: npt.NDArray[np.intp]
    copies: int = 0


def load(
    source: str,
    rows: int = SYNTHETIC_ROWS,
    seed: int = 0,
    label_column: str | None = None,
    spec: FeatureSpec = ULB,
    kind_column: str | None = None,
) -> Dataset:
    """Loads transactions.

    >>> dataset = load("synthetic", rows=1_000, seed=7)
    >>> dataset.features.shape, int(dataset.labels.sum()) > 0
    ((1000, 30), True)

    Args:
      source: CSV, JSON lines or Parquet files, as `common.files.find` finds them, `bigquery://project.dataset.table`,
        or `synthetic`.
      rows: how many synthetic transactions to draw; other sources are read whole.
      seed: of the synthetic generator.
      label_column: as in `from_arrow`.
      spec: of the features.
      kind_column: as in `from_arrow`.

    Raises:
      DataError: no such source, a column missing, a value that is not a finite number.
    """
    if source == SYNTHETIC:
        if spec != ULB:
            raise DataError(
                f"--data: expected a source with the columns of --features, got {SYNTHETIC}, whose rows are "
                "those of the ULB table"
            )
        return _synthetic(rows, seed)
    if source.startswith(BIGQUERY_SCHEME):
        # Deferred: a file needs neither the client nor credentials.
        from model.bigquery_table import read_table

        try:
            table = read_table(
                source.removeprefix(BIGQUERY_SCHEME),
                lambda names: used_columns(names, source, label_column, spec, kind_column),
            )
        except DataError:
            raise
        except ValueError as e:
            raise DataError(f"--data {e}") from e
        return from_arrow(table, source, label_column, spec, kind_column)
    return from_arrow(_read_files(source, spec), source, label_column, spec, kind_column)


def _synthetic(rows: int, seed: int) -> Dataset:
    # Deferred: files need neither the generator nor Faker.
    from model.synthetic.generator import TransactionGenerator

    generator = TransactionGenerator(seed=seed, fraud_share=SYNTHETIC_FRAUD_SHARE)
    features, labels = generator.features(rows)
    matrix = np.asarray(features, dtype=np.float32)
    return Dataset(
        matrix,
        np.asarray(labels, dtype=np.int8),
        {
            "source": SYNTHETIC,
            "rows": rows,
            "seed": seed,
            "fraud_share": SYNTHETIC_FRAUD_SHARE,
            "frauds": int(labels.sum()),
        },
        times=matrix[:, TIME_INDEX],
    )


def _read_files(source: str, spec: FeatureSpec) -> pa.Table:
    # Deferred with Beam, whose file systems they use: synthetic data and tables need neither.
    from common import files, table_files

    try:
        files.require_credentials(source)
        paths = [file.path for file in files.find(source)]
        if paths:
            categories = spec.categories
            return table_files.join([table_files.read_table(path, None, categories) for path in paths])
    except table_files.TableFileError as e:
        raise DataError(f"--data: {e}") from e
    except (CommandError, pa.ArrowException) as e:  # their texts name the file
        raise DataError(f"--data {source}: cannot be read: {e}") from e
    except Exception as e:  # whatever Cloud Storage's client raises: no permission, no network
        raise DataError(f"--data {source}: cannot be read: {e}") from e
    raise DataError(
        f"--data: expected CSV, JSON lines or Parquet files, {BIGQUERY_SCHEME}project.dataset.table or "
        f"{SYNTHETIC}, got {source!r}, and there is no such file"
    )


def check_enough(dataset: Dataset) -> None:
    """Checks that there are MIN_NORMALS normal transactions, and that they differ.

    Raises:
      DataError: there are fewer, or all are equal.
    """
    n_normal = int(dataset.is_normal.sum())
    if n_normal < MIN_NORMALS:
        raise DataError(
            f"{n_normal} normal transactions are too few: at least {MIN_NORMALS} are needed to train and to "
            "calibrate the alert thresholds"
        )
    normals = dataset.features[dataset.is_normal][:, np.array(dataset.spec.is_scored)]
    if not (normals != normals[0]).any():
        raise DataError(
            "no feature of the score varies among the normal transactions; there is nothing to learn from "
            "equal rows"
        )


def split(dataset: Dataset, seed: int, by: SplitBy = "random") -> Split:
    """Splits a dataset in SPLIT_SHARES; the same rows, in any order, and seed give the same split.

    Equal rows stay together, so that no row of the test part has its copy in the training part.

    Args:
      dataset: the rows.
      seed: of a random split.
      by: "random" splits frauds and normals each by themselves; "time" trains on the earliest rows and tests
        on the latest.

    Raises:
      DataError: fewer than MIN_NORMALS normal transactions, equal ones only, or so many copies that fewer
        than MIN_CALIBRATION_ROWS normals come into the validation part; rows without times are to be split
        by time.
    """
    check_enough(dataset)
    if by == "time" and dataset.times is None:
        raise DataError(
            f"--split=time: expected a column {dataset.spec.roles.event_time!r}, the event time of the "
            "feature spec; got none"
        )
    rng = np.random.default_rng(seed)
    different, first, group = np.unique(dataset.keys, axis=0, return_index=True, return_inverse=True)
    part_of_group = np.full(len(different), -1, dtype=np.int8)
    every = np.ones(len(group), dtype=bool)
    times = None if by == "random" else dataset.times
    for stratum in (dataset.is_normal, ~dataset.is_normal) if by == "random" else (every,):
        groups = np.unique(group[stratum])
        groups = groups[part_of_group[groups] < 0]
        bounds = np.cumsum(SPLIT_SHARES[:2]) * len(groups)
        parts = np.searchsorted(bounds, np.arange(len(groups)), side="right").astype(np.int8)
        if times is None:
            part_of_group[groups] = rng.permutation(parts)
        else:
            part_of_group[groups[np.argsort(times[first[groups]], kind="stable")]] = parts
    part = part_of_group[group]
    train, validation, test = (np.flatnonzero(part == i) for i in range(3))
    n_calibration = int(dataset.is_normal[validation].sum())
    if n_calibration < MIN_CALIBRATION_ROWS:
        raise DataError(
            f"{n_calibration} normal transactions are left to calibrate the alert thresholds, at least "
            f"{MIN_CALIBRATION_ROWS} are needed: equal rows stay together in a split, and there are only "
            f"{len(part_of_group)} different ones; use more data or remove the copies"
        )
    return Split(train, validation, test, copies=len(group) - len(different))
