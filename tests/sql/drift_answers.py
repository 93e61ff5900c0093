"""The answers of the queries about drift, computed from the rows in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from operator import itemgetter
from typing import Any, Final

from model.thresholds import ALERT_BUDGETS
from tests.sql.grouping import SCORED, Rows, about, copies_of, groups_of, last_of, latest_of, percentile

ALERTING: Final = ("medium", "high")


def feature_drift(profiles: Rows, limit: int) -> Rows:
    """The population stability index of each feature over the bins of the training."""
    counted = latest_of(profiles, "feature_profiles", "profiled_at")
    shown = []
    for (feature, version), found in groups_of(counted, itemgetter("feature", "model_version")).items():
        total = sum(row["transactions"] for row in found)
        bins = groups_of((item for row in found for item in row["bins"]), itemgetter("place"))
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
                "outside_percent": about(100 * sum(row["outside"] for row in found) / total, 3),
                "missing_percent": about(100 * sum(row["missing"] for row in found) / total, 3),
                "trained_missing_percent": about(100 * max(known) if known else None, 3),
            }
        )
    shown.sort(key=lambda row: (-float(f"{row['psi']:.4f}"), row["feature"], row["model_version"]))
    return [row | {"psi": about(row["psi"], 4)} for row in shown[:limit]]


def _by_model(scores: Rows) -> list[Rows]:
    """The latest score of each transaction by each model."""
    return [
        [max(scored, key=itemgetter(*SCORED)) for scored in groups_of(copies, _version).values()]
        for copies in copies_of(scores)
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
                **{f"score_p{share}": about(percentile(values, share), 3) for share in (5, 50, 95, 99)},
                "score_max": about(max(values), 3),
            }
        )
    return last_of(shown, limit, "hour", "model_version")


def alert_budget(scores: Rows, limit: int) -> Rows:
    """The share of a severity and those above it, beside the budget of the training."""
    shown = []
    models = groups_of((row for copies in _by_model(scores) for row in copies), _version)
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
                    "alert_percent": about(100 * alerts / len(found), 3),
                    "budget_percent": about(100 * budget, 3),
                    "times_budget": about(alerts / len(found) / budget, 3),
                }
            )
    return shown[:limit]
