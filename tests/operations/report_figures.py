"""Figures of a page, made by hand: plain ones, and ones whose texts attack the page."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from operations.report.figures import Figures

NOON: Final = dt.datetime(2026, 3, 8, 12, tzinfo=dt.UTC)
HOSTILE: Final = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "' onmouseover='document.title=1' x='",
    "</style><style>body{display:none}</style>",
    "<!-- --><base href=//evil.example>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:document.title='owned'",
    "\x1b[31mred\x00\x07\x9b",
    "\N{RIGHT-TO-LEFT OVERRIDE}desrever\N{LEFT-TO-RIGHT ISOLATE}",
    "שלום עולם",
    "&lt;b&gt; & &amp;",
    "x" * 50_000,
    "word " * 10_000,
    "\ud800 lone",
    "",
)
"""Texts that a message can bring into an id, a field or a reason."""


def alert(text: str, **changes: Any) -> dict[str, Any]:
    """The row of an alert whose texts are all the same."""
    return {
        "transaction_id": text,
        "account_id": text,
        "event_time": NOON,
        "amount": 4312.5,
        "anomaly_score": 12.5,
        "severity": text,
        "threshold": 8.5,
        "top_features": [
            {"feature": text, "contribution": 4.0, "value": text},
            {"feature": "V14", "contribution": -2.0},
            {"feature": "V3", "contribution": None, "value": 1.5},
        ],
        "model_version": text,
        **changes,
    }


def figures(texts: tuple[str, ...] = ("tx-1", "tx-2")) -> Figures:
    """The figures of two hours, with these texts in every place that holds text."""
    hours = [NOON + dt.timedelta(minutes=10 * i) for i in range(12) if i != 5]
    rows: dict[str, list[dict[str, Any]]] = {
        "pace": [
            {
                "time": time,
                "transactions": 600 * i,
                "per_second": 1.0 * i,
                "p50_ms": 90 * i,
                "p99_ms": 900 * i,
            }
            for i, time in enumerate(hours, 1)
        ],
        "score_distribution": [
            {"bin": bin, "severity": severity, "transactions": count}
            for bin, severity, count in [
                (-30, "normal", 5),
                (0, "normal", 9000),
                (9, "medium", 40),
                (10, "high", 3),
            ]
        ]
        + [{"bin": 1, "severity": text, "transactions": 1} for text in texts],
        "alerts_over_time": [
            {"time": time, "transactions": 600, "medium": i % 4, "high": i % 3}
            for i, time in enumerate(hours)
        ],
        "last_alerts": [alert("tx-0", severity="high"), *(alert(text) for text in texts)],
        "thresholds": [
            {"model_version": "v1", "severity": severity, "threshold": threshold, "last_alert": NOON}
            for severity, threshold in (("high", 9.5), ("medium", 7.9), (texts[0], 8.0))
        ],
        "dead_letters": [
            {"stage": text, "reason": text, "messages": 30 - i, "first_seen": NOON, "last_seen": NOON}
            for i, text in enumerate(texts)
        ],
        "feature_drift": [
            {
                "feature": name,
                "model_version": text,
                "transactions": 5000,
                "psi": 2.4 / (i + 1),
                "outside_percent": 12.5 - i,
                "missing_percent": 0.0,
                "trained_missing_percent": None,
            }
            for i, (name, text) in enumerate([("Amount", texts[0]), *zip(texts, texts, strict=True)])
        ],
        "model_versions": [
            {
                "model_version": text,
                "transactions": 9000,
                "alerts": 43,
                "alert_percent": 0.478,
                "score_p50": 1.0,
                "score_p99": 6.0,
                "first_scored": NOON,
                "last_scored": NOON,
            }
            for text in texts
        ],
        "versions_over_time": [
            {"time": time, "model_version": text, "transactions": 300}
            for i, time in enumerate(hours)
            for text in (texts[:1] if i < 4 else texts)
        ],
        "shadow_agreement": [
            {
                "day": NOON.replace(hour=0),
                "model_version": text,
                "shadow_version": f"{text} next",
                "transactions": 9000,
                "alerts": 43,
                "shadow_alerts": 41,
                "gained": 3,
                "lost": 5,
                "agreement_percent": 82.6,
            }
            for text in texts
        ],
    }
    extent = {"first_scored": NOON, "last_scored": hours[-1], "first_event": NOON, "last_event": hours[-1]}
    made_at = hours[-1] + dt.timedelta(minutes=1)
    return Figures("my-project.anomaly", NOON, made_at, 1024, 600, 600, extent, rows)


def empty() -> Figures:
    """The figures of a dataset without rows."""
    nothing = dict.fromkeys(("first_scored", "last_scored", "first_event", "last_event"))
    return Figures("my-project.anomaly", NOON, NOON, 0, 1, 1, nothing, {name: [] for name in figures().rows})
