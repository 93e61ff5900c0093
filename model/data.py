"""Training and evaluation data: sources, checks, and the split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.command import CommandError
from common.options import option
from common.values import at_least
from model.columns import ColumnTypeError, numbers, plain
from model.features import FEATURES, LABEL, N_FEATURES, TIME_INDEX
from model.roles import LABEL_NAMES, find_column, resembling
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


class DataError(CommandError, ValueError):
    """The data cannot be used; the message names the column or the rows, and says what to do."""


@dataclass(frozen=True)
class DataOptions:
    """The labelled or unlabelled transactions to train or judge on."""

    data: str = option(
        SYNTHETIC,
        metavar="SOURCE",
        help="CSV or Parquet file in the ULB layout (Time, V1..V28, Amount, and Class where it is labelled), "
        f"{BIGQUERY_SCHEME}project.dataset.table, or {SYNTHETIC} (default: %(default)s)",
    )
    label_column: str = option(
        LABEL,
        metavar="NAME",
        help="column with 1 or true for a fraud; empty to train as if nothing were labelled "
        "(default: %(default)s)",
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


@dataclass(frozen=True)
class Dataset:
    """Transactions in memory.

    Attributes:
      features: raw features, float32 [n, 30], finite.
      labels: int8 [n], 1 for a fraud, or None when the source has no label column.
      provenance: description of the source, for the manifest.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int8] | None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def is_normal(self) -> npt.NDArray[np.bool_]:
        """A mask of the rows that are not known frauds, bool [n]; all of them without labels."""
        if self.labels is None:
            return np.ones(len(self.features), dtype=bool)
        return self.labels == 0


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


def fingerprint(dataset: Dataset) -> str:
    """Computes the sha256 of features and labels: it tells a dataset again, whatever file it comes from.

    The order of the rows does not count, and it does not count in `split`: a table may be read in any order.
    """
    columns = [dataset.features.view(np.uint32)]
    if dataset.labels is not None:
        columns.append(dataset.labels.astype(np.uint32)[:, None])
    rows = np.ascontiguousarray(np.concatenate(columns, axis=1))
    # As opaque bytes, one item a row, numpy sorts whole rows at once.
    ordered = np.sort(rows.view(f"V{rows.itemsize * rows.shape[1]}"), axis=0)
    return hashlib.sha256(ordered.tobytes()).hexdigest()


def load(source: str, rows: int = SYNTHETIC_ROWS, seed: int = 0, label_column: str = LABEL) -> Dataset:
    """Loads transactions.

    >>> dataset = load("synthetic", rows=1_000, seed=7)
    >>> dataset.features.shape, int(dataset.labels.sum()) > 0
    ((1000, 30), True)

    Args:
      source: a CSV or Parquet file in the ULB layout, `bigquery://project.dataset.table`, or `synthetic`.
      rows: how many synthetic transactions to draw; other sources are read whole.
      seed: of the synthetic generator.
      label_column: as in `from_arrow`.

    Raises:
      DataError: no such source, a column missing, a value that is not a finite number.
    """
    if source == SYNTHETIC:
        return _synthetic(rows, seed)
    if source.startswith(BIGQUERY_SCHEME):
        # Deferred: a file needs neither the client nor credentials.
        from model.bigquery_table import read_table

        try:
            table = read_table(
                source.removeprefix(BIGQUERY_SCHEME), lambda names: used_columns(names, source, label_column)
            )
        except DataError:
            raise
        except ValueError as e:
            raise DataError(f"--data {e}") from e
        return from_arrow(table, source, label_column)
    return from_arrow(_read_file(source), source, label_column)


def _synthetic(rows: int, seed: int) -> Dataset:
    # Deferred: files need neither the generator nor Faker.
    from model.synthetic.generator import TransactionGenerator

    generator = TransactionGenerator(seed=seed, fraud_share=SYNTHETIC_FRAUD_SHARE)
    features, labels = generator.features(rows)
    return Dataset(
        np.asarray(features, dtype=np.float32),
        np.asarray(labels, dtype=np.int8),
        {
            "source": SYNTHETIC,
            "rows": rows,
            "seed": seed,
            "fraud_share": SYNTHETIC_FRAUD_SHARE,
            "frauds": int(labels.sum()),
        },
    )


def _read_file(source: str) -> pa.Table:
    from pyarrow import csv, parquet

    path = Path(source)
    if not path.is_file():
        raise DataError(
            f"--data: expected a CSV or Parquet file, {BIGQUERY_SCHEME}project.dataset.table or {SYNTHETIC}, "
            f"got {source!r}, and there is no such file"
        )
    try:
        if path.suffix.lower() == ".parquet":
            # As a file: a directory reader fails on a column that is there twice.
            return parquet.ParquetFile(path).read()
        if path.suffix.lower() == ".csv":
            table = csv.read_csv(path)
            # Arrow decodes the names of the columns only when they are asked for.
            _ = table.column_names
            return table
    except UnicodeDecodeError as e:
        raise DataError(f"--data {source}: the names of the columns are not UTF-8: {e}") from e
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"--data {source}: cannot be read: {e}") from e
    raise DataError(f"--data: expected a name that ends in .csv or .parquet, got {source!r}")


def from_arrow(table: pa.Table, source: str, label_column: str = LABEL) -> Dataset:
    """Makes a dataset of a table in the ULB layout: Time, V1..V28, Amount, and a label where there is one.

    Rows without a label, in a table that has labels, are left out: nobody knows yet what they are.

    Args:
      table: the columns.
      source: its name, for errors.
      label_column: holds the labels; empty for none. The table need not have the column LABEL, any other that
        is named here it must have.

    Raises:
      DataError: a column is missing, there twice, or not numeric, a value is null, NaN or infinite, a label
        not 0 or 1; there is no label column, and another column is called as one.
    """
    used = used_columns(table.column_names, source, label_column)
    provenance: dict[str, Any] = {"source": source, "rows": table.num_rows}
    if unused := [name for name in table.column_names if name not in used]:
        provenance["columns_not_used"] = unused
    labels = None
    if label_column in used:
        labels, is_known = _labels(table, label_column, source)
        if not is_known.all():
            table = table.filter(pa.array(is_known))
            provenance["rows_without_label"] = int((~is_known).sum())
        provenance["frauds"] = int(labels.sum())
    features = np.empty((table.num_rows, N_FEATURES), dtype=np.float32)
    for i, name in enumerate(used[:N_FEATURES]):
        features[:, i] = _column(table, name, source)
    return Dataset(features, labels, provenance)


def used_columns(names: Sequence[str], source: str, label_column: str = LABEL) -> Sequence[str]:
    """Chooses the columns of a table that are read: the features in order, and the label where there is one.

    A feature is found by its name, otherwise by its name without case, as in batches and SQL.

    Raises:
      DataError: a column is missing or there twice, or another column is called as a label; see `from_arrow`.
    """
    try:
        found = {name: find_column(names, name) for name in FEATURES}
    except ValueError as e:
        raise DataError(f"{source}: {e}") from e
    missing = [name for name, column in found.items() if column is None]
    if missing:
        raise DataError(
            f"{source}: column(s) missing: {', '.join(missing)}; needed are Time, V1..V28, Amount"
        )
    is_labelled = bool(label_column) and _has_label(names, label_column, source)
    features = tuple(column for column in found.values() if column is not None)
    used = (*features, label_column) if is_labelled else features
    twice = [name for name in used if names.count(name) > 1]
    if twice:
        raise DataError(f"{source}: column(s) there more than once: {', '.join(twice)}; keep one of each")
    return used


def _has_label(names: Sequence[str], label_column: str, source: str) -> bool:
    if label_column in names:
        return True
    alike = resembling(names, LABEL_NAMES)
    if label_column != LABEL:
        raise DataError(
            f"{source}: --label_column: there is no column {label_column!r}; "
            f"{'one is called ' + repr(alike[0]) if alike else 'the columns are ' + ', '.join(names[-8:])}"
        )
    if alike:
        raise DataError(
            f"{source}: there is no column {LABEL}, and {alike[0]!r} may be the label: pass "
            f"--label_column={alike[0]}, or --label_column= to train as if nothing were labelled"
        )
    return False


def _column(table: pa.Table, name: str, source: str) -> npt.NDArray[np.float64]:
    try:
        chunks = [numbers(plain(chunk), name) for chunk in table[name].chunks]
    except ColumnTypeError as e:
        raise DataError(f"{source}: {e}") from e
    values = np.concatenate([np.empty(0), *chunks]).astype(np.float64)
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(values.astype(np.float32))
    if bad.any():
        raise DataError(
            f"{source}: column {name} has {int(bad.sum())} missing, NaN or infinite value(s), or texts that "
            f"are no number, the first in row {int(np.argmax(bad))}; remove or repair these rows"
        )
    return values


def _labels(table: pa.Table, name: str, source: str) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.bool_]]:
    """Reads the labels that are known, int8 [m], and which rows have one, bool [n]."""
    column = table[name]
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            # Arrow reads "0", "1", "true" and "false", in any case.
            column = pc.cast(pc.utf8_trim_whitespace(column), pa.bool_())
        values = pc.cast(column, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        raise DataError(f"{source}: column {name} must hold 0 or 1, true or false: {e}") from e
    is_known = pc.is_valid(values).to_numpy().astype(bool)
    known = values.drop_null().to_numpy()
    if not np.isin(known, (0, 1)).all():
        raise DataError(f"{source}: column {name} must hold 0 (normal) and 1 (fraud) only")
    return known.astype(np.int8), is_known


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
    normals = np.delete(dataset.features[dataset.is_normal], TIME_INDEX, axis=1)
    if not (normals != normals[0]).any():
        raise DataError(
            "columns V1..V28 and Amount do not vary among the normal transactions; there is nothing to learn "
            "from equal rows"
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
        than MIN_CALIBRATION_ROWS normals come into the validation part.
    """
    check_enough(dataset)
    rng = np.random.default_rng(seed)
    different, group = np.unique(dataset.features, axis=0, return_inverse=True)
    part_of_group = np.full(len(different), -1, dtype=np.int8)
    every = np.ones(len(group), dtype=bool)
    for stratum in (dataset.is_normal, ~dataset.is_normal) if by == "random" else (every,):
        groups = np.unique(group[stratum])
        groups = groups[part_of_group[groups] < 0]
        bounds = np.cumsum(SPLIT_SHARES[:2]) * len(groups)
        parts = np.searchsorted(bounds, np.arange(len(groups)), side="right").astype(np.int8)
        if by == "random":
            part_of_group[groups] = rng.permutation(parts)
        else:
            part_of_group[groups[np.argsort(different[groups, TIME_INDEX], kind="stable")]] = parts
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
