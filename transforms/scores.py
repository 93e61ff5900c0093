"""Assembles SCORES record batches from model outputs: pure, and the same for every scorer."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.arrow import count_missing
from features.declaration import FeatureSpec
from features.default import ULB
from features.profiles import Bins, Sample
from model.explain import top_features
from model.outputs import ANOMALY_SCORE, CONTRIBUTIONS, ENCODED, SCALAR_OUTPUTS, SCALES, VECTOR_OUTPUTS
from model.thresholds import SEVERITIES, check_thresholds, codes_of
from transforms.dead_letter import dead_letters
from transforms.json_rows import PASSED, untraced, without_list
from transforms.plain_columns import no_texts, one_time, texts
from transforms.readable import amounts, by_feature, value_texts
from transforms.schema import (
    CARRIED_FIELDS,
    KEY_FIELDS,
    SCORES,
    SCORES_FULL,
    SHADOW_FIELDS,
    TOP_FEATURES,
    TRACE_FIELDS,
)
from transforms.thresholds import with_thresholds
from transforms.trace import source_attributes

OutputDetail = Literal["compact", "full"]

_SEVERITY_NAMES: Final = pa.array(SEVERITIES, pa.string())
_FEW: Final = 64
"""Rows up to which a call of Arrow's compute functions takes longer than Python objects."""
_NORMAL: Final = _SEVERITY_NAMES[0]
_TIME: Final = SCORES.field("scored_at").type
_TOP_LIST: Final = SCORES.field("top_features").type
_NUMBERS: Final = pa.list_(pa.float64())


@dataclass(frozen=True)
class ScoreRules:
    """The values that turn an anomaly score into a severity and a row.

    Attributes:
      thresholds: the lowest anomaly_score of each alerting severity ("medium", "high").
      model_version: written into every row.
      detail: "compact" for SCORES, "full" for SCORES_FULL.
      spec: the features of the model.
      bins: by which some rows are counted; None counts none.
    """

    thresholds: Mapping[str, float]
    model_version: str
    detail: OutputDetail = "compact"
    spec: FeatureSpec = ULB
    bins: Bins | None = None

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema of the rows, which carries the thresholds."""
        return with_thresholds(SCORES_FULL if self.detail == "full" else SCORES, self.thresholds)

    @cached_property
    def names(self) -> pa.Array:
        """The names of the features."""
        return pa.array(self.spec.names, pa.string())

    @cached_property
    def version(self) -> pa.Scalar:
        """The version for a column."""
        return pa.scalar(self.model_version, pa.string())

    @cached_property
    def steps(self) -> list[float]:
        """The thresholds in the order of the severities."""
        return check_thresholds(self.thresholds)


class Scored(NamedTuple):
    """One SCORES batch and one ERROR_RECORDS batch; together they hold every transaction once.

    The samples are of scored rows, for the profile of the features.
    """

    scores: pa.RecordBatch
    dead_letters: pa.RecordBatch
    samples: tuple[Sample, ...] = ()


def feature_matrix(transactions: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """Returns the inputs of the model, float32 [n, inputs], as a view of the Arrow buffer."""
    column = transactions.column("features")
    width = column.type.list_size
    # Not `flatten`, which is a compute function: it costs as much as the model's own arithmetic on one row.
    values = column.values.to_numpy(zero_copy_only=True)
    return values[column.offset * width :][: len(column) * width].reshape(-1, width)


def assemble_scores(
    transactions: pa.RecordBatch,
    outputs: Mapping[str, npt.NDArray[np.floating]],
    rules: ScoreRules,
    scored_at: int,
    features: npt.NDArray[np.float32] | None = None,
    shadow: Sequence[pa.Array] | None = None,
) -> Scored:
    """Joins transactions with the outputs of the model.

    A row whose score is not finite becomes a dead letter that can be replayed.

    >>> from transforms.schema import TRANSACTIONS, empty
    >>> widths = {"anomaly_score": (), "encoded": (4,), "contributions": (30,)}
    >>> outputs = {name: np.empty((0, *width)) for name, width in widths.items()}
    >>> rules = ScoreRules({"medium": 10.0, "high": 20.0}, model_version="1")
    >>> assemble_scores(empty(TRANSACTIONS), outputs, rules, scored_at=0).scores.schema.names[:3]
    ['transaction_id', 'account_id', 'event_time']

    Args:
      transactions: a TRANSACTIONS batch of n rows.
      outputs: `anomaly_score` [n], `encoded` [n, 4], `contributions` [n, inputs]; with detail "full" also the
        other outputs of the model by name. Columns of outputs that a server does not have stay empty.
      rules: thresholds, version and detail.
      scored_at: microseconds since the epoch.
      features: the inputs of the model; those of the batch when None.
      shadow: the columns of SHADOW_FIELDS, if a second model has scored.
    """
    score = np.asarray(outputs[ANOMALY_SCORE], np.float64)
    n, codes = len(score), None
    # One look finds the usual batch, which has no alert. Ufuncs: of one row, a method takes twice as long.
    if not np.maximum.reduce(np.absolute(score), initial=0.0) < rules.steps[0]:
        finite = np.isfinite(score)
        if np.count_nonzero(finite) < n:
            mask = pa.array(finite)
            bad = transactions.filter(pa.array(~finite))
            reasons = [f"anomaly_score: the model gave {value}" for value in score[~finite]]
            kept = {name: values[finite] for name, values in outputs.items()}
            rest = None if features is None else features[finite]
            beside = shadow and [column.filter(mask) for column in shadow]
            scored = assemble_scores(transactions.filter(mask), kept, rules, scored_at, rest, beside)
            return scored._replace(dead_letters=unscored(bad, reasons, rules.spec))
        codes = codes_of(score, rules.steps)
        codes = codes if np.count_nonzero(codes) else None
    taken = feature_matrix(transactions) if features is None else features
    traced = transactions.num_columns - len(CARRIED_FIELDS)
    # Raw values, if there are any, stand between the features and what is carried.
    matrix = taken if traced == len(KEY_FIELDS) + 1 else None
    columns = [
        *map(transactions.column, range(len(KEY_FIELDS))),
        amounts(transactions, matrix, rules.spec),
        pa.array(score),
        severities(codes, n),
        _lists(outputs.get(ENCODED), n),
        _top(transactions, matrix, outputs.get(CONTRIBUTIONS), codes, rules),
        repeated(rules.version, n),
        one_time(scored_at, n, _TIME),
        *map(transactions.column, range(traced, traced + len(TRACE_FIELDS))),
        *(shadow or _unset(n)[:-1]),
        _unset(n)[-1],
    ]
    if rules.detail == "full":
        for scale in SCALES:
            columns += [_lists(outputs.get(f"{scale}_{name}"), n) for name in VECTOR_OUTPUTS]
            columns += [_numbers(outputs.get(f"{scale}_{name}"), n) for name in SCALAR_OUTPUTS]
    scores = pa.RecordBatch.from_arrays(columns, schema=rules.schema)
    return Scored(scores, dead_letters([], [], "score"), sampled(transactions, taken, score, rules))


def severities(codes: npt.NDArray[np.int8] | None, n: int) -> pa.Array:
    """Makes the column of severities of codes, [n]; None stands for normal rows alone.

    >>> severities(np.array([0, 2], np.int8), 2).to_pylist(), severities(None, 1).to_pylist()
    (['normal', 'high'], ['normal'])
    """
    return repeated(_NORMAL, n) if codes is None else _SEVERITY_NAMES.take(pa.array(codes))


def sampled(
    transactions: pa.RecordBatch,
    features: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float64],
    rules: ScoreRules,
) -> tuple[Sample, ...]:
    """Takes the rows of a scored batch that are counted in the profile; at most one sample."""
    bins, n = rules.bins, transactions.num_rows
    if bins is None or not n:
        return ()
    column = transactions.column(0)
    first = bins.first_row(column[0].as_py())
    if first >= n:
        return ()
    chosen = slice(first, None, bins.every)
    missing = {}
    if "inputs" in transactions.schema.names:
        raw = transactions["inputs"].take(pa.array(np.arange(n)[chosen]))
        for feature in rules.spec.features:
            if (index := raw.type.get_field_index(feature.source)) >= 0:
                missing[feature.name] = count_missing(raw.field(index))
    rows = range(n)[chosen]
    ids = (
        column.take(pa.array(rows)).to_pylist() if len(rows) > _FEW else [column[row].as_py() for row in rows]
    )
    return (
        bins.sample(rules.model_version, ids, features[chosen], scores[chosen].astype(np.float32), missing),
    )


def unscored(transactions: pa.RecordBatch, reasons: list[str], spec: FeatureSpec = ULB) -> pa.RecordBatch:
    """Makes dead letters of transactions that could not be scored; their payloads can be replayed."""
    attributes = [source_attributes(source) for source in transactions["source"].to_pylist()]
    return dead_letters(transaction_messages(transactions, spec), reasons, "score", attributes)


def transaction_messages(transactions: pa.RecordBatch, spec: FeatureSpec = ULB) -> list[bytes]:
    """Makes JSON messages of a TRANSACTIONS batch, in the form that the parser takes.

    Features go by name: a model with other features, or in another order, must not take them for its own.
    """
    messages = []
    computed = {feature.name for feature in spec.history}
    for row in transactions.to_pylist():
        features, raw = row.pop("features"), row.pop("inputs", None)
        values = dict(zip(spec.fields, features, strict=True)) if raw is None else raw
        values = {name: value for name, value in values.items() if name not in computed}
        if raw is None:
            row[PASSED] = without_list(row.get(PASSED))
        messages.append(untraced(row, values))
    return messages


def _top(
    transactions: pa.RecordBatch,
    matrix: npt.NDArray[np.float32] | None,
    contributions: npt.NDArray[np.floating] | None,
    codes: npt.NDArray[np.int8] | None,
    rules: ScoreRules,
) -> pa.Array:
    n = transactions.num_rows
    if contributions is None:
        return pa.nulls(n, _TOP_LIST)
    most = min(TOP_FEATURES, len(rules.spec.names))
    indices, shares = top_features(by_feature(np.asarray(contributions), rules.spec), most)
    shown = (
        no_texts(n * most)
        if codes is None
        else value_texts(transactions, matrix, indices, codes > 0, rules.spec)
    )
    places = indices.reshape(-1)
    names = (
        rules.names.take(pa.array(places))
        if n > _FEW
        else texts([rules.spec.names[place] for place in places.tolist()])
    )
    children = [names, pa.array(shares.reshape(-1)), shown]
    top = pa.Array.from_buffers(_TOP_LIST.value_type, n * most, [None], children=children)
    return pa.Array.from_buffers(_TOP_LIST, n, [None, _offsets(n, most)], children=[top])


def _numbers(values: npt.NDArray[np.floating] | None, n: int) -> pa.Array:
    return pa.nulls(n, pa.float64()) if values is None else pa.array(values.astype(np.float64))


def _lists(matrix: npt.NDArray[np.floating] | None, n: int) -> pa.Array:
    if matrix is None:
        return pa.nulls(n, _NUMBERS)
    values = pa.array(matrix.reshape(-1).astype(np.float64))
    return pa.Array.from_buffers(_NUMBERS, n, [None, _offsets(n, matrix.shape[1])], children=[values])


@functools.lru_cache(maxsize=32)
def repeated(text: pa.Scalar, n: int) -> pa.Array:
    """Makes a column of one text; those of the last numbers of rows are kept."""
    return pa.repeat(text, n)


@functools.lru_cache(maxsize=16)
def _unset(n: int) -> tuple[pa.Array, ...]:
    """The columns of SHADOW_FIELDS without a shadow, and that of the time at which a row is stored."""
    return (*(pa.nulls(n, field.type) for field in SHADOW_FIELDS), pa.nulls(n, _TIME))


@functools.lru_cache(maxsize=16)
def _offsets(n: int, width: int) -> pa.Buffer:
    """The buffer of offsets of lists of one length."""
    return pa.py_buffer(np.arange(0, n * width + 1, width, dtype=np.int32))
