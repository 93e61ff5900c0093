"""Observations of scored rows and dead letters, without Beam."""

import datetime as dt

import pyarrow as pa
import pytest

from transforms import metrics
from transforms.dead_letter import dead_letters
from transforms.observations import FIELDS, OTHER, ROWS, alert_counters, letter_counters, observed

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def batch(millis, scores):
    time = pa.timestamp("us", tz="UTC")
    return pa.RecordBatch.from_pydict(
        {
            "event_time": pa.array([NOON - dt.timedelta(milliseconds=each) for each in millis], time),
            "scored_at": pa.array([NOON] * len(millis), time),
            "anomaly_score": pa.array(scores, pa.float64()),
        }
    )


def test_some_rows_stand_for_a_batch_and_the_newest_event_is_found_among_all():
    n = 100
    found = observed(batch([1000 - i for i in range(n)], [float(i) for i in range(n)]))
    assert len(found[metrics.EVENT_TO_SCORED]) == len(found[metrics.SCORE_MILLI]) == ROWS
    assert found[metrics.EVENT_TO_SCORED][:2] == [1000, 987]
    assert found[metrics.SCORE_MILLI][:2] == [0, 13_000]
    assert found[metrics.FRESHNESS] == [901]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 16, 17])
def test_a_batch_of_any_size_has_some_observations_and_never_more(n):
    assert 1 <= len(observed(batch([5] * n, [1.0] * n))[metrics.EVENT_TO_SCORED]) <= ROWS


def test_an_event_in_the_future_is_not_late_and_no_score_is_too_high():
    found = observed(batch([-5000, 7], [1e300, 0.25]))
    assert found[metrics.EVENT_TO_SCORED] == [0, 7]
    assert found[metrics.FRESHNESS] == [0]
    assert found[metrics.SCORE_MILLI] == [2**53, 250]
    assert observed(batch([], [])) == {}


def test_a_stranger_makes_no_name_of_a_counter():
    reasons = [f"{word}: no" for word in ("payload", "features", "V1", "x" * 9000, "\x1b[31m", "")] + [
        "",
        ":",
    ]
    for stage in ("parse", "score"):
        names = letter_counters(dead_letters([b""] * len(reasons), reasons, stage))
        assert names == {
            f"dead_letters.{stage}.payload": 1,
            f"dead_letters.{stage}.features": 1,
            f"dead_letters.{stage}.{OTHER}": 6,
        }
    assert len(FIELDS) == 6


def test_alerts_are_counted_by_severity():
    alerts = pa.RecordBatch.from_pydict({"severity": ["high", "medium", "high"]})
    assert alert_counters(alerts) == {"alerts_high": 2, "alerts_medium": 1}
