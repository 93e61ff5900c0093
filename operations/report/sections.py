"""The sections of the page, one entry of SECTIONS each: title, rows, drawing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from model.thresholds import SEVERITIES
from operations.reasons import value_text
from operations.report import charts
from operations.report.figures import Figures, Rows
from operations.report.queries import BINS_PER_DECADE
from operations.watch import Limits

MOST_REASONS: Final = 8
"""Reasons of dead letters that are drawn."""
MOST_FEATURES: Final = 10
"""Features with drift that are drawn, those with the most."""
MOST_SHADOWS: Final = 14
"""Days and pairs of versions whose shadow agreement is drawn, the last ones."""
MOST_VERSIONS: Final = 3
"""Model versions with a colour of their own, those that scored last."""
LIMITS: Final = Limits()
_ALERTING: Final = {name: f"{name} alerts" for name in SEVERITIES[1:]}


@dataclass(frozen=True)
class Bar:
    """A horizontal bar: its label, a text beside it, its value, and its length in per cent of the longest."""

    label: str
    aside: str
    value: str
    percent: float


@dataclass(frozen=True)
class Alert:
    """An alert with the reasons for it."""

    row: dict[str, Any]
    reasons: tuple[Bar, ...]


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
      statement: name of the rows in `Figures.rows`, also shown as a table.
      title: over it.
      note: a sentence for the reader, and for whoever cannot see the chart.
      draw: makes what is drawn of figures with rows: a chart, bars, or alerts; None for the table alone.
      empty: shown without rows.
    """

    statement: str
    title: str
    note: str
    draw: Callable[[Figures], charts.Chart | list[Bar] | list[Alert]] | None = None
    empty: str = "Nothing in this time."


def _throughput(figures: Figures) -> charts.Chart:
    rows = figures.rows["pace"]
    values = {"count": [row["per_second"] for row in rows]}
    return charts.stacked(_times(rows), values, figures.scored_step, {"count": "transactions a second"})


def _latency(figures: Figures) -> charts.Chart:
    rows = figures.rows["pace"]
    values = {"median": [row["p50_ms"] for row in rows], "tail": [row["p99_ms"] for row in rows]}
    names = {"median": "half are faster (p50)", "tail": "99 of 100 are faster (p99)"}
    return charts.lines(_times(rows), values, figures.scored_step, names)


def _scores(figures: Figures) -> charts.Chart:
    bins: dict[int, Counter[str]] = defaultdict(Counter)
    for row in figures.rows["score_distribution"]:
        bins[row["bin"]][row["severity"] if row["severity"] in SEVERITIES else SEVERITIES[0]] += row[
            "transactions"
        ]
    reached = figures.rows["thresholds"]
    # The thresholds of the model that raised the last alert.
    current = {
        row["severity"]: row["threshold"]
        for row in reached
        if row["model_version"] == reached[-1]["model_version"]
    }
    rules = {name: current[name] for name in SEVERITIES if name in current}
    return charts.histogram(bins, BINS_PER_DECADE, rules, {name: name for name in SEVERITIES})


def _alerts(figures: Figures) -> charts.Chart:
    rows = figures.rows["alerts_over_time"]
    values = {name: [row[name] for row in rows] for name in _ALERTING}
    return charts.stacked(_times(rows), values, figures.event_step, _ALERTING)


def _last_alerts(figures: Figures) -> list[Alert]:
    return [Alert(row, tuple(_reasons(row["top_features"]))) for row in figures.rows["last_alerts"]]


def _reasons(features: Rows) -> list[Bar]:
    """The features as bars of their contribution; with the value where the table has it."""
    most = max((abs(each["contribution"] or 0) for each in features), default=0) or 1
    bars = []
    for each in features:
        share = 100 * abs(each["contribution"] or 0) / most
        bars.append(
            Bar(
                str(each["feature"]),
                value_text(each.get("value")),
                f"{each['contribution'] or 0:+.2f}",
                round(min(share, 100.0), 1),
            )
        )
    return bars


def _letters(figures: Figures) -> list[Bar]:
    rows = figures.rows["dead_letters"]
    most = max(row["messages"] for row in rows)
    return [
        Bar(row["reason"], row["stage"], f"{row['messages']:,}", round(100 * row["messages"] / most, 1))
        for row in rows[:MOST_REASONS]
    ]


def _drift(figures: Figures) -> list[Bar]:
    rows = figures.rows["feature_drift"]
    versions = {row["model_version"] for row in rows}
    # Bars of a feed without drift stay short.
    most = max(rows[0]["psi"], LIMITS.max_psi)
    bars = []
    for row in rows[:MOST_FEATURES]:
        notes = [f"{row['outside_percent']:g} % outside the training"] if row["outside_percent"] else []
        notes += [f"{row['missing_percent']:g} % missing"] if row["missing_percent"] else []
        aside = [row["model_version"]] if len(versions) > 1 else []
        aside += [", ".join(notes)] if notes else []
        share = max(0.0, 100 * row["psi"] / most)
        bars.append(Bar(row["feature"], ": ".join(aside), f"{row['psi']:.2f}", round(share, 1)))
    return bars


def _versions(figures: Figures) -> charts.Chart:
    """The transactions by version, older versions together."""
    names = [row["model_version"] for row in figures.rows["model_versions"]][:MOST_VERSIONS]
    kinds = {name: f"version{i}" for i, name in enumerate(names, 1)}
    counts: dict[Any, Counter[str]] = defaultdict(Counter)
    for row in figures.rows["versions_over_time"]:
        counts[row["time"]][kinds.get(row["model_version"], "older")] += row["transactions"]
    labels = {kind: name for name, kind in kinds.items()}
    if any(each["older"] for each in counts.values()):
        labels["older"] = "older ones"
    values = {kind: [each[kind] for each in counts.values()] for kind in labels}
    return charts.stacked(list(counts), values, figures.scored_step, labels)


def _shadow(figures: Figures) -> list[Bar]:
    """Draws the shadow beside the model in use, and says where the shadow is that model by now."""
    bars = []
    rows = figures.rows["shadow_agreement"]
    for row in [row for row in rows if row["shadow_version"] != row["model_version"]][-MOST_SHADOWS:]:
        # None where neither model raises an alert: they agree.
        share = 100.0 if row["agreement_percent"] is None else row["agreement_percent"]
        label = f"{row['day']:%Y-%m-%d} {row['shadow_version']} beside {row['model_version']}"
        aside = (
            f"{row['gained']:,} gained, {row['lost']:,} lost, of {row['alerts']:,} alerts "
            f"in {row['transactions']:,} transactions"
        )
        bars.append(Bar(label, aside, f"{share:g} %", share))
    if rows and rows[-1]["shadow_version"] == (version := rows[-1]["model_version"]):
        # A bar of 100 % would look like a trial that went well.
        advice = "it agrees with itself: launch the stream without --shadow_model"
        bars.append(Bar(f"{rows[-1]['day']:%Y-%m-%d} {version} is in use itself", advice, "", 0))
    return bars


def _times(rows: Rows) -> list[Any]:
    return [row["time"] for row in rows]


SECTIONS: Final = (
    Section(
        "pace",
        "Throughput",
        "Transactions scored a second, by the time of their first score.",
        _throughput,
    ),
    Section(
        "pace",
        "Latency",
        "From the event to its first score. A job over old data, a batch above all, is late by their age.",
        _latency,
    ),
    Section(
        "alerts_over_time",
        "Alerts over time",
        "By event time and by the latest score of each transaction.",
        _alerts,
    ),
    Section(
        "score_distribution",
        "Scores",
        "How many transactions have which anomaly score; both axes are logarithmic. The lines are the "
        "thresholds that alerts have reached.",
        _scores,
    ),
    Section(
        "dead_letters",
        "Dead letters",
        "Messages and rows that were rejected, by reason and stage. The table has the rarer ones as well.",
        _letters,
        "No dead letters in this time.",
    ),
    Section(
        "feature_drift",
        "Drift by feature",
        "How far each feature, and the score, is from the training, by the population stability index: up to "
        f"0.1 is usual, above {LIMITS.max_psi:g} is another distribution. The table has all features.",
        _drift,
        "No profiles in this time.",
    ),
    Section(
        "versions_over_time",
        "Models over time",
        "Transactions by the version that scored them and the time of the score, where a new one takes over.",
        _versions,
    ),
    Section("model_versions", "Model versions", "The transactions that each version has scored."),
    Section(
        "shadow_agreement",
        "Shadow agreement",
        "Alerts of both models as a share of the alerts of either, by day. Gained alerts are those of the "
        "shadow model alone, lost ones those of the model in use alone.",
        _shadow,
        "No shadow model has scored in this time.",
    ),
    Section(
        "last_alerts",
        "Last alerts",
        "The newest first, as they were raised, with the features that contribute most to the score.",
        _last_alerts,
        "No alerts in this time.",
    ),
)
"""In the order of the page. The last one takes its whole width."""
