"""The history step on Beam's runners: each gives the values of one call over all rows, and loses nothing."""

from __future__ import annotations

import random

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.io.gcp.pubsub import ReadFromPubSub
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.transforms.window import FixedWindows

from features.declaration import FeatureSpec
from features.default import ULB
from features.history.plan import plans
from features.history.table import Table
from local.process_runner import ProcessRunner
from local.runner import LocalStreamingRunner, run_until_drained
from pipelines.record import _Names
from tests.local.runner_cases import SEEN, Collect, new_pipeline, publish
from tests.transforms.history_cases import (
    RULES,
    SPEC,
    assert_equal,
    expected,
    payloads,
    payments,
    transactions,
)
from transforms import history as step
from transforms import metrics
from transforms.gather import BatchMessages
from transforms.history import KEYS, LATE, History, divided, rows_of, with_history, with_values
from transforms.history_state import FORMAT, apply
from transforms.parse import Parse
from transforms.scores import feature_matrix


def pieces(rows: list, seed: int = 0) -> list[pa.RecordBatch]:
    """Transactions in batches of different lengths, in order."""
    lots, batches, start = random.Random(seed), [], 0
    while start < len(rows):
        size = lots.choice((1, 2, 17, 150))
        batches.append(transactions(rows[start : start + size]))
        start += size
    return batches


@pytest.fixture(autouse=True)
def no_records():
    SEEN.clear()


def test_a_batch_job_counts_by_time_and_id_and_leaves_the_rows_where_they_are():
    rows = payments(60, accounts=2)
    for i in range(0, 60, 3):  # three of one time, whose ids decide
        rows[i + 1]["time"] = rows[i + 2]["time"] = rows[i]["time"]
    plan = plans(SPEC)[0]
    mixed = random.Random(2).sample(rows, 60)
    parts = [part for lot in (mixed[:25], mixed[25:]) for _, part in divided(plan, transactions(lot), 1)]
    filled = [*step._SortedFn(plan, None).process((0, parts))]
    ids = [part["transaction_id"] for part in parts]
    assert [part["transaction_id"] for part in filled] == ids
    wanted = expected(rows)
    for part in filled:
        done = with_history(plan, part)
        inputs = np.array([wanted[key] for key in done["transaction_id"].to_pylist()])
        np.testing.assert_allclose(feature_matrix(done)[:, list(plan.columns)], inputs[:, list(plan.columns)])


@pytest.mark.parametrize("streaming", [True, False])
def test_fn_api_runner_gives_the_values_of_training(streaming):
    rows = payments(1_500)
    batches = pieces(rows)
    if not streaming:
        random.Random(1).shuffle(batches)
    pipeline = beam.Pipeline("FnApiRunner")
    _ = pipeline | beam.Create(batches, reshuffle=False) | History(SPEC, streaming) | beam.ParDo(Collect())
    result = pipeline.run()
    result.wait_until_finish()
    assert_equal(SEEN, expected(rows))
    assert len(SEEN) < len(batches)  # joined again
    shops = {row["shop"]["name"] for row in rows}
    accounts = {row["card"]["account"] for row in rows} - {None}
    assert metrics.totals(result)[KEYS] == len(shops) + len(accounts)


@pytest.mark.parametrize("streaming", [True, False])
def test_batches_behind_the_step_have_at_most_the_rows_that_are_scored_at_once(streaming):
    rows = payments(700)
    pipeline = beam.Pipeline("FnApiRunner")
    batches = pipeline | beam.Create(pieces(rows), reshuffle=False)
    # One bucket: a part of a bundle has as many rows as the bundle.
    _ = batches | History(SPEC, streaming, 1, batch_rows=50) | beam.ParDo(Collect())
    pipeline.run().wait_until_finish()
    assert max(batch.num_rows for batch in SEEN) == 50
    assert_equal(SEEN, expected(rows))


def to_files(batch: pa.RecordBatch, directory: str) -> None:
    path = f"{directory}/{batch['transaction_id'][0].as_py()}.arrow"
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)


@pytest.mark.integration
def test_processes_share_the_groups_of_a_batch_job(tmp_path):
    rows = payments(1_500)
    options = PipelineOptions()
    options.view_as(DirectOptions).direct_running_mode = "multi_processing"
    options.view_as(DirectOptions).direct_num_workers = 2
    pipeline = beam.Pipeline(runner=ProcessRunner(), options=options)
    _ = (
        pipeline
        | beam.Create(pieces(rows)).with_output_types(pa.RecordBatch)
        | History(SPEC)
        | beam.Map(to_files, str(tmp_path))
    )
    pipeline.run().wait_until_finish()
    batches = [pa.ipc.open_stream(path.read_bytes()).read_next_batch() for path in tmp_path.iterdir()]
    assert_equal(batches, expected(rows))


class Failures:
    """Makes two bundles of the step with state fail right after it has counted their rows.

    Attributes:
      planted: the ids of the transactions at which they failed.
      parts: the parts of batches in the order in which their bundles succeeded, by their number of values.
    """

    def __init__(self) -> None:
        self.planted: list[str] = []
        self.parts: dict[tuple[int, str], pa.RecordBatch] = {}

    def __call__(self, batch, values):
        first = batch["transaction_id"][0].as_py()
        if len(self.planted) < 2 and int(first[2:]) > 500 * (len(self.planted) + 1):
            self.planted.append(first)
            raise RuntimeError("planted")
        self.parts.pop((values.shape[1], first), None)  # of an attempt that has failed
        self.parts[values.shape[1], first] = batch
        return with_values(batch, values)

    def expected(self):
        """By transaction: the inputs, where each part counts once, in the order of the runner."""
        wanted = {}
        for plan in plans(SPEC):
            table = Table(plan)
            for (width, _), batch in self.parts.items():
                if width == len(plan.names):
                    matrix = feature_matrix(batch)
                    values = apply(plan, table, rows_of(plan, batch)).values
                    for i, key in enumerate(batch["transaction_id"].to_pylist()):
                        row = wanted.setdefault(key, matrix[i].copy())
                        row[list(plan.columns)] = values[i]
        return wanted


@pytest.mark.integration
@pytest.mark.parametrize("millis", [0, 50])
def test_the_local_runner_gives_the_values_of_training(channel, monkeypatch, millis):
    failures = Failures()
    monkeypatch.setattr(step, "with_values", failures)
    rows = payments(1_500)
    publish(channel.topic, payloads(rows))
    pipeline = new_pipeline(LocalStreamingRunner(max_messages=400))
    parsed = (
        pipeline
        | ReadFromPubSub(subscription=channel.subscription, with_attributes=True)
        | BatchMessages(100, millis)
        | Parse(RULES)
    )
    filled = parsed.transactions | History(SPEC, streaming=True)
    _ = filled | beam.ParDo(Collect())
    result = run_until_drained(
        pipeline, is_done=lambda: sum(batch.num_rows for batch in SEEN) >= len(rows), timeout=60
    )
    assert len(failures.planted) == 2
    assert_equal(SEEN, failures.expected())
    if not metrics.totals(result).get(LATE):  # Pub/Sub has no order
        assert_equal(SEEN, expected(rows))


def test_without_history_features_nothing_is_added():
    pipeline = beam.Pipeline("FnApiRunner")
    batches = pipeline | beam.Create([transactions(payments(3))])
    assert batches | History(ULB) is batches


def steps(spec: FeatureSpec, buckets: int) -> set[str]:
    visitor = _Names()
    pipeline = beam.Pipeline("FnApiRunner")
    _ = pipeline | beam.Create([transactions(payments(3))]) | History(spec, True, buckets)
    pipeline.visit(visitor)
    return {name for name in visitor.names if name.endswith("/State")}


def test_state_of_another_layout_is_another_step_which_an_update_cannot_lose():
    content = SPEC.to_json()
    content["features"][0]["scale"] = "log"
    assert steps(FeatureSpec.from_json(content), 16) == steps(SPEC, 16)
    assert not steps(SPEC, 16) & steps(SPEC, 32)
    assert all(f"log {FORMAT}/State" in name for name in steps(SPEC, 16)), "an older log cannot be read"
    content["features"][2]["half_life"] = "2d"
    other = steps(FeatureSpec.from_json(content), 16)
    assert len(other & steps(SPEC, 16)) == 1  # by shop


def test_another_window_is_refused():
    pipeline = beam.Pipeline("FnApiRunner")
    windowed = pipeline | beam.Create([transactions(payments(3))]) | beam.WindowInto(FixedWindows(60))
    with pytest.raises(ValueError, match="expected the global window, got FixedWindows"):
        windowed | History(SPEC)
