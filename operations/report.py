"""Figures and picture of a run, from scores, alerts and dead letters as Arrow tables."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model.thresholds import SEVERITIES

NORMAL_KIND: Final = "(normal)"
_FOLDS: Final = (
    (r" [(].*[)]", ""),
    (r", which is \w+", ""),
    (r"([ \[])-?\d[-\d:.+eT]*", r"\1N"),
)
"""What varies from message to message in a reason, and what stands for it; as in dead_letters.sql."""
_COLORS: Final = {"normal": "#4c78a8", "medium": "#f2a33a", "high": "#d1495b"}


@dataclass(frozen=True)
class Comparison:
    """Two sets of scores of the same transactions.

    Attributes:
      rows: transactions in both.
      only_first: transactions in the first alone.
      only_second: transactions in the second alone.
      largest_difference: largest absolute difference of anomaly_score over the common rows.
    """

    rows: int
    only_first: int
    only_second: int
    largest_difference: float

    @property
    def equal(self) -> bool:
        """Tells whether both hold the same transactions, one at least, with the same scores."""
        return self.rows > 0 and not (self.only_first or self.only_second or self.largest_difference)


@dataclass(frozen=True)
class Latency:
    """Time from the event until something was there, in milliseconds."""

    p50: float
    p99: float


def compare(first: pa.Table, second: pa.Table) -> Comparison:
    """Compares two tables of scores by transaction_id; a copy of a row counts once."""
    scores = [_by_id(table) for table in (first, second)]
    common = scores[0].keys() & scores[1].keys()
    differences = [abs(scores[0][name] - scores[1][name]) for name in common]
    return Comparison(
        len(common),
        len(scores[0]) - len(common),
        len(scores[1]) - len(common),
        max(differences, default=0.0),
    )


def _by_id(table: pa.Table) -> dict[str, float]:
    names = table.column("transaction_id").to_pylist()
    return dict(zip(names, table.column("anomaly_score").to_pylist(), strict=True))


def latency(scores: pa.Table) -> Latency:
    """From the event to its score, for the rows of a table of scores that has at least one.

    What comes after the score, the write and the alert, is not in it; see `alert_latency`.

    Raises:
      ValueError: the table has no rows.
    """
    if not scores.num_rows:
        raise ValueError("no scores, so there is no latency")
    return _quantiles((_micros(scores, "scored_at") - _micros(scores, "event_time")) / 1000)


def alert_latency(alerts: Sequence[tuple[str, dt.datetime, dt.datetime]]) -> Latency:
    """From the event to its alert on the topic, the way that a subscriber waits for; the first copy counts.

    Args:
      alerts: transaction_id, event time and publish time of each alert message, one at least.
    """
    first: dict[str, float] = {}
    for name, event, published in alerts:
        waited = (published - event) / dt.timedelta(milliseconds=1)
        first[name] = min(waited, first.get(name, waited))
    return _quantiles(np.array(list(first.values())))


def _quantiles(milliseconds: npt.NDArray[np.float64]) -> Latency:
    p50, p99 = np.quantile(milliseconds, [0.5, 0.99])
    return Latency(float(p50), float(p99))


def throughput(scores: pa.Table, since: str = "scored_at") -> float | None:
    """Rows a second up to the last score; None where all have one moment.

    Args:
      scores: a table of scores.
      since: column of the first moment. With event_time, what comes out cannot exceed the rate of the events.
    """
    if not scores.num_rows:
        return None
    span = float(_micros(scores, "scored_at").max() - _micros(scores, since).min()) / 1e6
    return scores.num_rows / span if span else None


def alerts_by_kind(scores: pa.Table, labels: pa.Table) -> list[dict[str, Any]]:
    """Counts the transactions of each planted kind that raised an alert.

    Args:
      scores: a table of scores.
      labels: columns transaction_id and planted_kind (null for a normal), as the publisher writes them.
    """
    joined = labels.join(scores.select(["transaction_id", "severity"]), "transaction_id", join_type="inner")
    kinds = pc.fill_null(joined.column("planted_kind"), NORMAL_KIND)
    rows = []
    for kind in sorted(pc.unique(kinds).to_pylist(), key=lambda name: (name == NORMAL_KIND, name)):
        severity = joined.column("severity").filter(pc.equal(kinds, kind))
        counts = {name: pc.sum(pc.equal(severity, name)).as_py() or 0 for name in SEVERITIES[1:]}
        total = len(severity)
        share = 100 * sum(counts.values()) / total
        rows.append(
            {"planted_kind": kind, "transactions": total, **counts, "alerted_percent": round(share, 2)}
        )
    return rows


def top_anomalies(scores: pa.Table, limit: int) -> list[dict[str, Any]]:
    """The highest scores with the features that explain them; what the query of that name gives."""
    rows = scores.sort_by([("anomaly_score", "descending")]).slice(0, limit).to_pylist()
    names = ("transaction_id", "account_id", "event_time")
    return [
        {name: row[name] for name in names}
        | {"anomaly_score": round(row["anomaly_score"], 2), "severity": row["severity"]}
        | {
            f"{key}_{i}": value if key == "feature" else round(value, 2)
            for i, item in enumerate(row["top_features"][:2], 1)
            for key, value in item.items()
        }
        for row in rows
    ]


def dead_letters_by_reason(errors: pa.Table, longest: int = 72) -> list[dict[str, Any]]:
    """Counts the dead letters of each stage and reason; what varies in a reason is left out."""
    reasons = errors.column("errorMessage")
    for pattern, text in _FOLDS:
        reasons = pc.replace_substring_regex(reasons, pattern, text)
    grouped = pa.table({"stage": errors.column("stage"), "reason": reasons, "n": errors.column("stage")})
    counted = grouped.group_by(["stage", "reason"]).aggregate([("n", "count")])
    rows = sorted(counted.to_pylist(), key=lambda row: (-row["n_count"], row["reason"]))
    return [
        {"stage": row["stage"], "reason": row["reason"][:longest], "messages": row["n_count"]} for row in rows
    ]


def picture(
    scores: pa.Table, labels: pa.Table, thresholds: Mapping[str, float], path: Path, heading: str
) -> None:
    """Draws the score distribution with the thresholds, and the scores over time with the alerts.

    Args:
      scores: a table of scores.
      labels: as for `alerts_by_kind`.
      thresholds: by severity.
      path: of the PNG.
      heading: over the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Arrow joins no lists, so the columns that are drawn come alone.
    drawn = scores.select(["transaction_id", "event_time", "anomaly_score", "severity"])
    kinds = labels.select(["transaction_id", "planted_kind"])
    joined = drawn.join(kinds, "transaction_id", join_type="inner")
    score = np.maximum(joined.column("anomaly_score").to_numpy(), 1e-3)
    planted = joined.column("planted_kind").is_valid().to_numpy()
    bins = np.geomspace(score.min(), score.max() * 1.01, 70)
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), width_ratios=(1, 1.25))
    left.hist(score[~planted], bins=bins, color=_COLORS["normal"], label="normal")
    left.hist(score[planted], bins=bins, color=_COLORS["high"], alpha=0.75, label="planted fraud")
    left.set(xscale="log", yscale="log", xlabel="anomaly_score", ylabel="transactions")
    for severity in SEVERITIES[1:]:
        left.axvline(
            thresholds[severity], color=_COLORS[severity], linestyle="--", label=f"{severity} threshold"
        )
    left.legend(frameon=False, fontsize=8)
    left.set_title("Score distribution", loc="left", fontsize=10)
    _over_time(right, joined, score, thresholds)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(heading, x=0.01, ha="left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _over_time(
    axis: Any, scores: pa.Table, score: npt.NDArray[np.float64], thresholds: Mapping[str, float]
) -> None:
    moments = _micros(scores, "event_time")
    seconds = (moments - moments.min()) / 1e6
    severity = np.array(scores.column("severity").to_pylist())
    sizes = dict(zip(SEVERITIES, (2, 14, 18), strict=True))
    for name in SEVERITIES:
        rows = severity == name
        label = f"{name} ({int(rows.sum()):,})"
        axis.scatter(
            seconds[rows], score[rows], s=sizes[name], color=_COLORS[name], label=label, linewidths=0
        )
    for name in SEVERITIES[1:]:
        axis.axhline(thresholds[name], color=_COLORS[name], linestyle="--", linewidth=1)
    axis.set(yscale="log", xlabel="event time, seconds since the first transaction", ylabel="anomaly_score")
    axis.legend(frameon=False, fontsize=8, loc="upper right")
    axis.set_title("Alerts over time", loc="left", fontsize=10)


def _micros(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = table.column(name).cast(pa.int64()).to_numpy()
    return values


def read_parquet(paths: Sequence[Path]) -> pa.Table:
    """The rows of Parquet files of one schema.

    Raises:
      FileNotFoundError: there is no file.
    """
    import pyarrow.parquet as pq

    if not paths:
        raise FileNotFoundError("no Parquet files: the job wrote none")
    return pa.concat_tables([pq.read_table(path) for path in sorted(paths)])
