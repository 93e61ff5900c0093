"""Transactions in memory, as the inputs of a model: columns of a table, encoded by a feature spec."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.command import CommandError
from features import roles
from features.arrow import count_missing, decoded, is_text, plain
from features.columns import (
    ColumnEncoder,
    ColumnError,
    booleans,
    category_texts,
    find_column,
    required_column,
    timestamps,
)
from features.declaration import FeatureSpec
from features.default import ULB
from features.history.columns import add_history
from features.kinds import REJECT
from features.learning import learn
from features.learnt import NOTHING, Learnt
from features.roles import LABEL_NAMES, resembling
from features.ulb import TIME
from features.values import FALSE_WORDS, TRUE_WORDS, shown

MAX_REFUSED_SHARE: Final = 0.1
"""Share of the rows that the spec may refuse. With more, the spec or the table is the wrong one."""
_NO_TIME: Final = np.iinfo(np.int64).min


class DataError(CommandError, ValueError):
    """The data cannot be used; the message names the column or the rows, and says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Transactions in memory.

    Attributes:
      features: inputs of the model, float32 [n, k], finite.
      labels: int8 [n], 1 for a fraud, or None when the source has no label column.
      provenance: description of the source, for the manifest.
      spec: of the features.
      learnt: the parameters by which the features are encoded.
      columns: of the spec's fields and its history; none where `features` are these columns, and there is
        nothing to learn.
      times: what orders the rows in time, [n]; None where the source has no times.
      kinds: texts [n] that name the kind of each fraud; None where no column does.
      numbers: of the rows in the source, from 0 on, int [n]; None where all rows of the source are there.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int8] | None
    provenance: dict[str, Any] = field(default_factory=dict)
    spec: FeatureSpec = ULB
    learnt: Learnt = NOTHING
    columns: Mapping[str, pa.Array] = field(default_factory=dict)
    times: npt.NDArray[Any] | None = None
    kinds: npt.NDArray[Any] | None = None
    numbers: npt.NDArray[np.intp] | None = None

    @property
    def is_normal(self) -> npt.NDArray[np.bool_]:
        """A mask of the rows that are not known frauds, bool [n]; all of them without labels."""
        if self.labels is None:
            return np.ones(len(self.features), dtype=bool)
        return self.labels == 0

    @cached_property
    def keys(self) -> npt.NDArray[Any]:
        """Numbers [n, fields] that are equal in two rows where the fields are, whatever was learnt."""
        if not self.columns:
            return self.features
        return np.stack([_ranks(column) for column in self.columns.values()], axis=1)

    def learning_from(self, rows: npt.NDArray[np.intp]) -> Dataset:
        """Learns the open parameters of the spec from these rows alone, and encodes all by them."""
        if not self.columns:
            return self
        chosen = pa.array(rows)
        return self.encoded_by(
            learn(self.spec, {name: column.take(chosen) for name, column in self.columns.items()})
        )

    def taken(self, rows: npt.NDArray[np.intp]) -> Dataset:
        """Takes rows by their positions; they keep the numbers that they have in the source."""

        def part(values: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
            return None if values is None else values[rows]

        return dataclasses.replace(
            self,
            features=self.features[rows],
            labels=part(self.labels),
            columns={name: column.take(pa.array(rows)) for name, column in self.columns.items()},
            times=part(self.times),
            kinds=part(self.kinds),
            numbers=rows if self.numbers is None else self.numbers[rows],
        )

    def missing_shares(self, rows: npt.NDArray[np.intp]) -> dict[str, float]:
        """Computes the share of these rows without a value, by feature; of those that may lack one."""
        chosen = pa.array(rows)
        return {
            feature.name: count_missing(self.columns[feature.source].take(chosen)) / len(rows)
            for feature in self.spec.features
            if feature.source in self.columns and feature.missing != REJECT
        }

    def encoded_by(self, learnt: Learnt) -> Dataset:
        """Encodes all rows by what was learnt elsewhere."""
        if not self.columns:
            return self
        features = ColumnEncoder(self.spec, learnt).encode(self.columns).inputs
        return dataclasses.replace(self, features=features, learnt=learnt)


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


def from_arrow(
    table: pa.Table,
    source: str,
    label_column: str | None = None,
    spec: FeatureSpec = ULB,
    kind_column: str | None = None,
) -> Dataset:
    """Makes a dataset of a table with the columns of a spec, and a label where there is one.

    Rows without a label, in a table that has labels, are left out: nobody knows yet what they are. So are
    rows that the spec refuses, such as those without a value that must be there; `provenance` counts both.

    Args:
      table: the columns.
      source: its name, for errors.
      label_column: holds the labels; empty for none, and None for the one that the spec names. The table need
        not have that of the spec, any other that is named here it must have.
      spec: of the features.
      kind_column: names the kind of each fraud, for figures by kind.

    Raises:
      DataError: a column is missing, there twice, or of a wrong type, a label is not 0 or 1, too many rows
        are refused; there is no label column, and another column is called as one.
    """
    used = used_columns(table.column_names, source, label_column, spec, kind_column)
    provenance: dict[str, Any] = {"source": source, "rows": table.num_rows}
    others = (spec.roles.transaction_id, spec.roles.account_id, *spec.roles.pass_through)
    known = {*used, *(_column_of(name, table.column_names) for name in others)}
    if unused := [name for name in table.column_names if name not in known]:
        provenance["columns_not_used"] = unused
    labels, numbers = None, None
    label = spec.roles.label if label_column is None else label_column
    label_values = _field(table, label) if label else None
    try:
        # A row without a label is no row to learn from; it is a part of the history of the others.
        columns = add_history(spec, table, _message_columns(table, spec))
    except ColumnError as error:
        raise DataError(f"{source}: {error}") from error
    if label and label_values is not None:
        labels, is_known = _labels(label_values, label, source)
        if not is_known.all():
            table, columns = table.filter(pa.array(is_known)), _taken(columns, is_known)
            numbers = np.flatnonzero(is_known)
            provenance["rows_without_label"] = int((~is_known).sum())
    try:
        kinds = None
        if kind_column:
            kinds, _ = category_texts(plain(required_column(table, kind_column)), kind_column)
        return _encoded(table, columns, labels, provenance, spec, kinds, numbers)
    except ColumnError as error:
        raise DataError(f"{source}: {error}") from error


def _message_columns(table: pa.Table, spec: FeatureSpec) -> dict[str, pa.Array]:
    values = {field: _field(table, field) for field in spec.message_fields}
    return {field: column for field, column in values.items() if column is not None}


def _encoded(
    table: pa.Table,
    columns: dict[str, pa.Array],
    labels: npt.NDArray[np.int8] | None,
    provenance: dict[str, Any],
    spec: FeatureSpec,
    kinds: pa.Array | None,
    numbers: npt.NDArray[np.intp] | None,
) -> Dataset:
    normal = columns if labels is None else _taken(columns, labels == 0)
    learnt = learn(spec, normal)
    features, reasons = ColumnEncoder(spec, learnt).encode(columns)
    times = _times(table, spec, features)
    names = None if kinds is None else np.array(kinds.fill_null("").to_pylist(), object)
    columns = {} if spec.is_numeric else columns
    dataset = Dataset(features, labels, provenance, spec, learnt, columns, times, names, numbers)
    if reasons:
        _check_refused(reasons, len(features), provenance["source"])
        provenance["rows_refused"] = dict(Counter(reason.partition(":")[0] for reason in reasons.values()))
        dataset = dataset.taken(np.setdiff1d(np.arange(len(features)), list(reasons)))
    if dataset.labels is not None:
        provenance["frauds"] = int(dataset.labels.sum())
    return dataset


def _check_refused(reasons: Mapping[int, str], n: int, source: str) -> None:
    if len(reasons) > MAX_REFUSED_SHARE * n:
        first = min(reasons)
        raise DataError(
            f"{source}: {len(reasons):,} of {n:,} rows are refused, the first is row {first}: "
            f"{reasons[first]}. Repair the column, or have the feature spec say what takes the place of a "
            "missing value (missing: median)"
        )


def _taken(columns: Mapping[str, pa.Array], mask: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    chosen = pa.array(mask)
    return {name: column.filter(chosen) for name, column in columns.items()}


def _times(table: pa.Table, spec: FeatureSpec, features: npt.NDArray[np.float32]) -> npt.NDArray[Any] | None:
    """Reads what orders the rows in time: the event time of the spec, or the ULB table's own."""
    column = _field(table, spec.roles.event_time)
    if column is not None:
        moments, _ = timestamps(column, spec.roles.time_format, spec.roles.event_time)
        micros: npt.NDArray[Any] = pc.fill_null(moments.cast(pa.int64()), _NO_TIME).to_numpy()
        return micros
    if spec == ULB:
        return features[:, spec.inputs.index(TIME)]
    return None


def _ranks(column: pa.Array) -> npt.NDArray[np.float64]:
    """Numbers the values of a column in their order; a missing one comes last."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    ranks = pc.rank(column, sort_keys="ascending", tiebreaker="dense")
    numbers: npt.NDArray[np.float64] = ranks.to_numpy().astype(np.float64)
    return numbers


def used_columns(
    names: Sequence[str],
    source: str,
    label_column: str | None = None,
    spec: FeatureSpec = ULB,
    kind_column: str | None = None,
) -> Sequence[str]:
    """Chooses the columns of a table that are read: of the features, of the times and of the label.

    Raises:
      DataError: a column is missing or there twice, or another column is called as a label; see `from_arrow`.
    """
    try:
        missing = [name for name in spec.message_fields if _column_of(name, names) is None]
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    if missing:
        fields = spec.message_fields
        wanted = ", ".join(fields) if len(fields) < 20 else f"the {len(fields)} of the spec"
        raise DataError(f"{source}: column(s) missing: {', '.join(missing)}; needed are {wanted}")
    optional = [spec.roles.event_time]
    label = spec.roles.label if label_column is None else label_column
    if label and _has_label(names, label_column, label, source):
        optional.append(label)
    optional += [spec.roles.account_id] if spec.history else []
    if kind_column and _column_of(kind_column, names) is None:
        raise DataError(
            f"{source}: --kind_column: there is no column {kind_column!r}; the last are "
            f"{', '.join(names[-8:])}"
        )
    optional += [kind_column] if kind_column else []
    columns = [_column_of(name, names) for name in (*spec.message_fields, *optional)]
    used = list(dict.fromkeys(name for name in columns if name is not None))
    twice = [name for name in used if names.count(name) > 1]
    if twice:
        raise DataError(f"{source}: column(s) there more than once: {', '.join(twice)}; keep one of each")
    return used


def _column_of(field: str, names: Sequence[str]) -> str | None:
    """Returns the column that holds a field: that of its name, or the struct around it; without case.

    Raises:
      ValueError: several columns have the name without case, and none with it.
    """
    return roles.find_column(names, field) or roles.find_column(names, field.partition(".")[0])


def _field(table: pa.Table, field: str) -> pa.Array | None:
    """Returns the column of a field, or the values within a struct; None where there is none."""
    name = _column_of(field, table.column_names)
    if name is None or name.lower() == field.lower():
        return None if name is None else find_column(table, name)
    return find_column(table, f"{name}.{field.partition('.')[2]}")


def _has_label(names: Sequence[str], label_column: str | None, label: str, source: str) -> bool:
    if _column_of(label, names) is not None:
        return True
    alike = resembling(names, LABEL_NAMES)
    if label_column is not None:
        raise DataError(
            f"{source}: --label_column: there is no column {label!r}; "
            f"{'one is called ' + repr(alike[0]) if alike else 'the columns are ' + ', '.join(names[-8:])}"
        )
    if alike:
        raise DataError(
            f"{source}: there is no column {label}, and {alike[0]!r} may be the label: pass "
            f"--label_column={alike[0]}, or --label_column= to train as if nothing were labelled"
        )
    return False


def _first_other(column: pa.Array) -> str:
    """Names the first label that is none, or the type of a column whose type holds none."""
    if not is_text(column.type):
        return str(column.type)
    texts, unread = decoded(column)
    if unread:
        return shown(column[min(unread)].as_py())
    words = pc.utf8_lower(pc.utf8_trim_whitespace(texts.drop_null()))
    others = words.filter(pc.invert(pc.is_in(words, pa.array([*TRUE_WORDS, *FALSE_WORDS], words.type))))
    return repr(others[0].as_py()) if len(others) else str(column.type)


def _labels(column: pa.Array, name: str, source: str) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.bool_]]:
    """Reads the labels that are known, int8 [m], and which rows have one, bool [n]."""
    try:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if is_text(column.type):
            values, bad = booleans(column, name)
            if bad.any():
                raise pa.ArrowInvalid(f"{name}: words that are not true or false")
            column = pa.array(values, from_pandas=True)
        values = pc.cast(column, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        raise DataError(
            f"{source}: column {name}: expected 0 or 1, true or false, got {_first_other(column)}; "
            "write 1 for a fraud and 0 for any other row"
        ) from e
    is_known = pc.is_valid(values).to_numpy(zero_copy_only=False).astype(bool)
    known = values.drop_null().to_numpy()
    if not np.isin(known, (0, 1)).all():
        raise DataError(f"{source}: column {name} must hold 0 (normal) and 1 (fraud) only")
    return known.astype(np.int8), is_known
