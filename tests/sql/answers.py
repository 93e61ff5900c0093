"""The answers of the named queries, computed from the rows in plain Python: no part is taken from the SQL."""

from __future__ import annotations

import datetime as dt
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from operator import itemgetter
from typing import Any, Final

import pytest

from model.thresholds import ALERT_BUDGETS
from tests.sql import rows

Row = dict[str, Any]
Rows = list[Row]

DEFAULT_SINCE: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
ALERTING: Final = ("medium", "high")
_SCORED: Final = ("scored_at", "event_time")
"""A transaction with a time of its own has one event time; of derived times the later counts."""
FOLDED: Final = {
    "payload: not JSON (Input data was truncated)": "payload: not JSON",
    "payload: not JSON (JSON is malformed: invalid character (byte 17))": "payload: not JSON",
    "payload: 70000 bytes, over the limit of 65536": "payload: N bytes, over the limit of 65536",
    "payload: 80000 bytes, over the limit of 65536": "payload: N bytes, over the limit of 65536",
    "features: 29 values instead of 30": "features: N values instead of 30",
    "amount: expected a number, got 17": "amount: expected a number, got N",
    "features[3]: 1e+99, which is not finite": "features[N]: N finite",
    "event_time: 2026-03-08T12:00:00Z is more than --max_event_lead_seconds=86400 after its publication": (
        "event_time: N is more than --max_event_lead_seconds=86400 after its publication"
    ),
}
"""Reasons of `rows.REASONS` as the query shows them; it shows the others as they are."""


def answer(name: str, stored: dict[str, Rows], since: dt.datetime | None, limit: int | None) -> Rows:
    """The rows of a query, over the rows of the tables by name."""
    compute, table, moment, most = _QUERIES[name]
    wanted = [row for row in stored[table] if row[moment] >= (since or DEFAULT_SINCE)]
    return compute(wanted, most if limit is None else limit)


def _groups(found: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, Rows]:
    groups: dict[Any, Rows] = defaultdict(list)
    for row in found:
        groups[key(row)].append(row)
    return groups


def _copies(found: Rows, table: str = "scores") -> Collection[Rows]:
    return _groups(found, lambda row: rows.key_of(row, table)).values()


def _latest(found: Rows, table: str = "scores", *order: str) -> Rows:
    return [max(copies, key=itemgetter(*(order or _SCORED))) for copies in _copies(found, table)]


def _about(value: float | None, digits: int) -> Any:
    """A number that the query rounds. Rounding itself is the business of the engine."""
    return None if value is None else pytest.approx(value, rel=1e-9, abs=0.5000001 * 10**-digits)


def _percentile(values: Iterable[Any], percent: int) -> Any:
    ordered = sorted(values)
    return ordered[max(1, math.ceil(percent * len(ordered) / 100)) - 1]


def _last(shown: Rows, limit: int, *columns: str) -> Rows:
    """The last rows of a course, in its order."""
    shown.sort(key=lambda row: [row[column] for column in columns])
    return shown[max(0, len(shown) - limit) :]


def _alert_percent(found: Rows) -> Any:
    return _about(100 * sum(row["severity"] in ALERTING for row in found) / len(found), 3)


def _top(row: Row, index: int) -> Row:
    tops = row["top_features"]
    return tops[index] if index < len(tops) else {"feature": None, "contribution": None, "value": None}


def anomalies_by_account(scores: Rows, limit: int) -> Rows:
    """Accounts by the number of alerts, then by the highest score."""
    alerts = [row for row in _latest(scores) if row["severity"] in ALERTING and row["account_id"] is not None]
    ranked = sorted(
        _groups(alerts, lambda row: row["account_id"]).items(),
        key=lambda group: (-len(group[1]), -max(row["anomaly_score"] for row in group[1]), group[0]),
    )
    return [
        {
            "account_id": account,
            "alerts": len(found),
            "high": sum(row["severity"] == "high" for row in found),
            "max_score": _about(max(row["anomaly_score"] for row in found), 2),
            "max_amount": max((row["amount"] for row in found if row["amount"] is not None), default=None),
            "first_alert": min(row["event_time"] for row in found),
            "last_alert": max(row["event_time"] for row in found),
        }
        for account, found in ranked[:limit]
    ]


def anomalies_by_feature(scores: Rows, limit: int) -> Rows:
    """Features by the number of alerts that they explain most."""
    alerts = [row for row in _latest(scores) if row["severity"] in ALERTING]
    named = [row for row in alerts if _top(row, 0)["feature"] is not None]
    shown = []
    for feature, found in _groups(named, lambda row: _top(row, 0)["feature"]).items():
        parts = [part for row in found if (part := _top(row, 0)["contribution"]) is not None]
        shown.append(
            {
                "feature": feature,
                "alerts": len(found),
                "high": sum(row["severity"] == "high" for row in found),
                "mean_contribution": _about(math.fsum(parts) / len(parts) if parts else None, 2),
            }
        )
    return sorted(shown, key=lambda row: (-row["alerts"], row["feature"]))[:limit]


def anomalies_by_hour(scores: Rows, limit: int) -> Rows:
    """Transactions and alerts of each hour."""
    hours = _groups(_latest(scores), lambda row: row["event_time"].replace(minute=0, second=0, microsecond=0))
    shown = [
        {
            "hour": hour,
            "transactions": len(found),
            "medium": sum(row["severity"] == "medium" for row in found),
            "high": sum(row["severity"] == "high" for row in found),
            "alert_percent": _alert_percent(found),
        }
        for hour, found in hours.items()
    ]
    return _last(shown, limit, "hour")


def dead_letters(letters: Rows, limit: int) -> Rows:
    """Messages by stage and reason; copies of a letter count once, and all of them have been seen."""

    shown = []
    grouped = _groups(
        letters, lambda row: (row["stage"], FOLDED.get(row["errorMessage"], row["errorMessage"]))
    )
    for (stage, reason), found in grouped.items():
        shown.append(
            {
                "stage": stage,
                "reason": reason,
                "messages": len(_copies(found, "error_records")),
                "first_seen": min(row["timestamp"] for row in found),
                "last_seen": max(row["timestamp"] for row in found),
            }
        )
    return sorted(shown, key=lambda row: (-row["messages"], row["reason"], row["stage"]))[:limit]


def latency(scores: Rows, limit: int) -> Rows:
    """Percentiles by minute, from the event to the first time at which it was scored."""
    first = [min(copies, key=itemgetter(*_SCORED)) for copies in _copies(scores)]

    def waited(row: Row, start: str, end: str) -> int | None:
        if row[start] is None or row[end] is None:
            return None
        micros = (row[end] - row[start]) // dt.timedelta(microseconds=1)
        return abs(micros) // 1000 * (1 if micros > 0 else -1)  # whole milliseconds, towards 0

    def percentiles(found: Rows, start: str, end: str) -> list[int | None]:
        known = [each for row in found if (each := waited(row, start, end)) is not None]
        return [_percentile(known, percent) if known else None for percent in (50, 99)]

    steps = {
        "publish_to_read": ("publish_time", "read_at"),
        "read_to_scored": ("read_at", "scored_at"),
        "scored_to_stored": ("scored_at", "stored_at"),
    }

    minutes = _groups(first, lambda row: row["scored_at"].replace(second=0, microsecond=0))
    shown = [
        {
            "minute": minute,
            "transactions": len(found),
            **dict(
                zip(("p50_ms", "p99_ms"), percentiles(found, "event_time", "scored_at"), strict=True),
            ),
            "max_ms": max(waited(row, "event_time", "scored_at") or 0 for row in found),
            **{
                f"{step}_p{percent}_ms": value
                for step, times in steps.items()
                for percent, value in zip((50, 99), percentiles(found, *times), strict=True)
            },
        }
        for minute, found in minutes.items()
    ]
    return _last(shown, limit, "minute")


def score_drift(scores: Rows, limit: int) -> Rows:
    """Each model's latest scores, by the day of the transaction's first event time."""
    days = defaultdict(list)
    for copies in _copies(scores):
        day = min(row["event_time"] for row in copies).replace(hour=0, minute=0, second=0, microsecond=0)
        for version, scored in _groups(copies, lambda row: row["model_version"]).items():
            days[day, version].append(max(scored, key=itemgetter(*_SCORED)))
    shown = [
        {
            "day": day,
            "model_version": version,
            "transactions": len(found),
            "alert_percent": _alert_percent(found),
            "score_p50": _about(_percentile((row["anomaly_score"] for row in found), 50), 3),
            "score_p99": _about(_percentile((row["anomaly_score"] for row in found), 99), 3),
        }
        for (day, version), found in days.items()
    ]
    return _last(shown, limit, "day", "model_version")


def shadow_agreement(scores: Rows, limit: int) -> Rows:
    """The latest score of each transaction that a shadow model scored as well, by day and versions."""
    names = ("day", "model_version", "shadow_version")
    known = [
        {**row, "day": row["event_time"].replace(hour=0, minute=0, second=0, microsecond=0)}
        for row in _latest(scores)
        if row["shadow_version"] is not None and row["shadow_score"] is not None
    ]
    shown = []
    for key, found in _groups(known, lambda row: tuple(row[name] for name in names)).items():
        pairs = [(row["severity"] in ALERTING, row["shadow_severity"] in ALERTING) for row in found]
        either = sum(map(any, pairs))
        shown.append(
            {
                **dict(zip(names, key, strict=True)),
                "transactions": len(found),
                "alerts": sum(first for first, _ in pairs),
                "shadow_alerts": sum(second for _, second in pairs),
                "gained": pairs.count((False, True)),
                "lost": pairs.count((True, False)),
                "agreement_percent": _about(100 * sum(map(all, pairs)) / either if either else None, 1),
            }
        )
    return _last(shown, limit, *names)


def score_windows(windows: Rows, limit: int) -> Rows:
    """The last state of each window; what several runs counted in it is added up, bin by bin."""
    last = [
        row for row in _latest(windows, "score_windows", "pane", "computed_at") if row["transactions"] > 0
    ]
    names = ("window_start", "window_seconds", "model_version")
    shown = []
    for key, found in _groups(last, lambda row: tuple(row[name] for name in names)).items():
        total = sum(row["transactions"] for row in found)
        known = [row for row in found if row["score_mean"] is not None]
        sums = [row["score_mean"] * row["transactions"] for row in known]
        shown.append(
            {
                **dict(zip(names, key, strict=True)),
                "transactions": total,
                **{name: _sum(row[name] for row in found) for name in ALERTING},
                "score_mean": _about(math.fsum(sums) / total if known else None, 6),
                **_bin_percentiles(found, "score", "", 3),
                **_bin_percentiles(found, "latency", "_ms", 1),
            }
        )
    return _last(shown, limit, *names)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _bin_percentiles(found: Rows, name: str, unit: str, digits: int) -> Row:
    bins = [item for row in found for item in row[f"{name}_bins"] if item["transactions"] > 0]
    values = [item["value"] for item in bins for _ in range(item["transactions"])]
    return {
        f"{name}_p{percent}{unit}": _about(_percentile(values, percent) if values else None, digits)
        for percent in (50, 99)
    }


def feature_drift(profiles: Rows, limit: int) -> Rows:
    """The population stability index of each feature over the bins of the training."""
    counted = _latest(profiles, "feature_profiles", "profiled_at")
    shown = []
    for (feature, version), found in _groups(counted, itemgetter("feature", "model_version")).items():
        total = sum(row["transactions"] for row in found)
        bins = _groups((item for row in found for item in row["bins"]), itemgetter("place"))
        if not total or not bins:
            continue
        held = {place: sum(item["transactions"] for item in items) for place, items in bins.items()}
        every, index = max(sum(held.values()), 1), 0.0
        for place, items in bins.items():
            seen = max(held[place] / every, 0.001)
            trained = max(0.001, *(item["share"] for item in items))
            index += (seen - trained) * math.log(seen / trained)
        known = [row["missing_share"] for row in found if row["missing_share"] is not None]
        shown.append(
            {
                "feature": feature,
                "model_version": version,
                "transactions": total,
                "psi": index,
                "outside_percent": _about(100 * sum(row["outside"] for row in found) / total, 3),
                "missing_percent": _about(100 * sum(row["missing"] for row in found) / total, 3),
                "trained_missing_percent": _about(100 * max(known) if known else None, 3),
            }
        )
    shown.sort(key=lambda row: (-float(f"{row['psi']:.4f}"), row["feature"], row["model_version"]))
    return [row | {"psi": _about(row["psi"], 4)} for row in shown[:limit]]


def _by_model(scores: Rows) -> list[Rows]:
    """The latest score of each transaction by each model."""
    return [
        [max(scored, key=itemgetter(*_SCORED)) for scored in _groups(copies, _version).values()]
        for copies in _copies(scores)
    ]


_version = itemgetter("model_version")


def score_quantiles(scores: Rows, limit: int) -> Rows:
    """Quantiles by hour and model."""
    hours: dict[Any, Rows] = defaultdict(list)
    for row in (row for copies in _by_model(scores) for row in copies):
        hours[row["event_time"].replace(minute=0, second=0, microsecond=0), _version(row)].append(row)
    shown = []
    for (hour, version), found in hours.items():
        values = [row["anomaly_score"] for row in found]
        shown.append(
            {
                "hour": hour,
                "model_version": version,
                "transactions": len(found),
                **{f"score_p{share}": _about(_percentile(values, share), 3) for share in (5, 50, 95, 99)},
                "score_max": _about(max(values), 3),
            }
        )
    return _last(shown, limit, "hour", "model_version")


def alert_budget(scores: Rows, limit: int) -> Rows:
    """The share of a severity and those above it, beside the budget of the training."""
    shown = []
    models = _groups((row for copies in _by_model(scores) for row in copies), _version)
    for version, found in sorted(models.items()):
        for level, severity in enumerate(ALERTING):
            alerts = sum(row["severity"] in ALERTING[level:] for row in found)
            budget = ALERT_BUDGETS[severity]
            shown.append(
                {
                    "model_version": version,
                    "severity": severity,
                    "transactions": len(found),
                    "alerts": alerts,
                    "alert_percent": _about(100 * alerts / len(found), 3),
                    "budget_percent": _about(100 * budget, 3),
                    "times_budget": _about(alerts / len(found) / budget, 3),
                }
            )
    return shown[:limit]


def top_anomalies(scores: Rows, limit: int) -> Rows:
    """The transactions with the highest scores; of equal scores, by id, time, and its derivation."""
    derived = (None, False, True)
    ranked = sorted(
        _latest(scores),
        key=lambda row: (
            -row["anomaly_score"],
            row["transaction_id"],
            row["event_time"],
            derived.index(row["event_time_derived"]),
        ),
    )
    return [
        {
            **{name: row[name] for name in ("transaction_id", "account_id", "event_time", "amount")},
            "anomaly_score": _about(row["anomaly_score"], 2),
            "severity": row["severity"],
            "feature_1": _top(row, 0)["feature"],
            "value_1": _top(row, 0)["value"],
            "contribution_1": _about(_top(row, 0)["contribution"], 2),
            "feature_2": _top(row, 1)["feature"],
            "value_2": _top(row, 1)["value"],
            "contribution_2": _about(_top(row, 1)["contribution"], 2),
        }
        for row in ranked[:limit]
    ]


_QUERIES: Final[dict[str, tuple[Callable[[Rows, int], Rows], str, str, int]]] = {
    "alert_budget": (alert_budget, "scores", "event_time", 100),
    "anomalies_by_account": (anomalies_by_account, "scores", "event_time", 20),
    "anomalies_by_feature": (anomalies_by_feature, "scores", "event_time", 30),
    "anomalies_by_hour": (anomalies_by_hour, "scores", "event_time", 1000),
    "dead_letters": (dead_letters, "error_records", "timestamp", 50),
    "feature_drift": (feature_drift, "feature_profiles", "profiled_at", 200),
    "latency": (latency, "scores", "event_time", 1000),
    "score_drift": (score_drift, "scores", "event_time", 1000),
    "score_quantiles": (score_quantiles, "scores", "event_time", 1000),
    "shadow_agreement": (shadow_agreement, "scores", "event_time", 1000),
    "score_windows": (score_windows, "score_windows", "window_start", 1000),
    "top_anomalies": (top_anomalies, "scores", "event_time", 20),
}
"""Function, table, the column that --since bounds, and the most rows."""


def view(table: str, stored: Rows) -> Rows:
    """The rows of the view over a table: the latest of the copies, in no order."""
    times = {
        "error_records": ("timestamp",),
        "replayed_records": ("replayed_at",),
        "score_windows": ("pane", "computed_at"),
        "feature_profiles": ("profiled_at",),
    }
    order = times.get(table, ("scored_at", "event_time"))
    return _latest(stored, table, *order)
