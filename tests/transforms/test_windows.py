"""Windows of scores: in batch, and in a stream with early, on-time and late panes."""

from __future__ import annotations

import datetime as dt

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.testing.test_stream import TestStream
from apache_beam.testing.util import assert_that, equal_to

from common.clients import BigQueryEndpoints
from common.options import OptionError
from pipelines.options import TableOptions
from tests.transforms.bigquery_server import ScriptedBigQuery
from transforms.detect import Detected
from transforms.schema import ALERTS, ERROR_RECORDS, SCORES, empty
from transforms.sinks import WriteTables
from transforms.sketch import RELATIVE_ERROR
from transforms.windows import CountWindows, summaries, window_values

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


def scores(
    count: int, start: dt.datetime = NOON, step: float = 1.0, version: str = "v1", traced: bool = True
) -> pa.RecordBatch:
    """Rows with scores from 0 on, some seconds apart, scored as many milliseconds after publication."""
    times = [start + dt.timedelta(seconds=step * i) for i in range(count)]
    rows = [
        {
            "transaction_id": f"t-{i}",
            "event_time": time,
            "event_time_derived": False,
            "anomaly_score": float(i),
            "severity": "high" if i % 10 == 0 else "medium" if i % 5 == 0 else "normal",
            "encoded": [],
            "top_features": [],
            "model_version": version,
            "publish_time": time if traced else None,
            "scored_at": time + dt.timedelta(milliseconds=i),
        }
        for i, time in enumerate(times)
    ]
    return pa.RecordBatch.from_pylist(rows, SCORES)


def counted(rows: beam.PCollection, *columns: str) -> beam.PCollection:
    return rows | beam.FlatMap(
        lambda batch: [tuple(row.values()) for row in batch.select(columns).to_pylist()]
    )


def test_a_batch_is_summed_up_by_window_and_version():
    batch = pa.concat_batches([scores(100), scores(30, version="v2", traced=False)])
    found = summaries(batch, 60)
    noon = int(NOON.timestamp())
    assert {key: value.score.rows for key, value in found.items()} == {
        ("v1", noon): 60,
        ("v1", noon + 60): 40,
        ("v2", noon): 30,
    }
    values = window_values(found["v1", noon])
    assert (values["transactions"], values["medium"], values["high"]) == (60, 6, 6)
    assert (values["score_mean"], values["score_max"]) == (29.5, 59.0)
    assert values["score_p50"] == pytest.approx(29, rel=RELATIVE_ERROR)
    assert values["latency_p99_ms"] == pytest.approx(59, rel=RELATIVE_ERROR)
    assert sum(item["transactions"] for item in values["score_bins"]) == 60
    untraced = window_values(found["v2", noon])
    assert (untraced["latency_mean_ms"], untraced["latency_max_ms"], untraced["latency_bins"]) == (
        None,
        None,
        [],
    )


def test_times_before_the_epoch_have_their_window():
    start = dt.datetime(1969, 12, 31, 23, 59, 30, tzinfo=dt.UTC)
    assert {key: value.score.rows for key, value in summaries(scores(60, start), 60).items()} == {
        ("v1", -60): 30,
        ("v1", 0): 30,
    }


def test_a_batch_job_counts_each_window_once():
    with beam.Pipeline("FnApiRunner") as p:
        batches = [scores(100), scores(100), scores(10, NOON + 5 * MINUTE)]
        rows = p | beam.Create(batches, reshuffle=False) | CountWindows(60, "run")
        shown = counted(
            rows, "window_start", "window_seconds", "model_version", "run_id", "transactions", "pane"
        )
        assert_that(
            shown,
            equal_to(
                [
                    (NOON, 60, "v1", "run", 120, 0),
                    (NOON + MINUTE, 60, "v1", "run", 80, 0),
                    (NOON + 5 * MINUTE, 60, "v1", "run", 10, 0),
                ]
            ),
        )


def test_each_pane_of_a_stream_holds_the_whole_window_and_late_rows_make_another():
    start = dt.datetime.now(dt.UTC).replace(second=0, microsecond=0) - 10 * MINUTE
    seconds = start.timestamp()
    stream = (
        TestStream()
        .advance_watermark_to(seconds)
        .add_elements([scores(50, start)])
        .advance_processing_time(25)
        .add_elements([scores(40, start)])
        .advance_watermark_to(seconds + 65)
        .add_elements([scores(5, start)])
        .add_elements([scores(7, start - dt.timedelta(days=2))])  # older than any window that is kept
        .advance_watermark_to_infinity()
    )
    p = beam.Pipeline(BundleBasedDirectRunner(), options=PipelineOptions(streaming=True))
    rows = p | stream | CountWindows(60, "run", streaming=True)
    panes = counted(rows, "window_start", "pane", "transactions")
    assert_that(panes, equal_to([(start, 0, 50), (start, 1, 90), (start, 2, 95)]))
    p.run().wait_until_finish()


def test_windows_reach_their_table_and_rows_that_are_refused_are_dead_letters():
    tables = [f"p.d.{name}" for name in ("scores", "alerts", "error_records", "score_windows")]
    with ScriptedBigQuery(*tables) as server:
        server.refuse = lambda row: "no" if row.get("transactions") == 40 else None
        with beam.Pipeline("FnApiRunner") as p:
            detected = Detected(
                p | "Scores" >> beam.Create([scores(100)]),
                p | "Alerts" >> beam.Create([empty(ALERTS)]),
                p | "Letters" >> beam.Create([empty(ERROR_RECORDS)]),
            )
            endpoints = BigQueryEndpoints(storage=server.address)
            _ = detected | WriteTables(
                "p.d", streaming=True, endpoints=endpoints, windows=CountWindows(60, "run")
            )
        assert [row["transactions"] for row in server.rows_of("score_windows")] == [60]
        (letter,) = server.rows_of("error_records")
        assert (letter["stage"], letter["errorMessage"]) == ("sink", "no")


def test_windows_need_a_table():
    with pytest.raises(OptionError, match="--window_seconds fills a table: pass --output_dataset as well"):
        TableOptions(window_seconds=60)
