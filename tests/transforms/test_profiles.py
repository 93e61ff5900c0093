"""Profiles on Beam: they sum to the rows that were scored, whatever the runner does."""

from __future__ import annotations

import datetime as dt
import json

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from features.arrow import count_missing
from features.profiles import Profile
from features.ranges import PROBABILITIES
from model import artifact
from tests.transforms.test_detect import message
from transforms.message import MessageColumns, MessageRules, parse_messages
from transforms.parse import Parse
from transforms.profiles import CollectProfiles, Held, profile_rows
from transforms.schema import FEATURE_PROFILES
from transforms.score import PytorchHandler, Score
from transforms.scores import ScoreRules, assemble_scores

TIME = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)


def messages(n, first=0, offset=0.0):
    rows = np.random.default_rng(3).normal(offset, size=(first + n, 30))[first:]
    return [message(f"t{first + i}", row.tolist()) for i, row in enumerate(rows)]


def summed(rows):
    """Adds up the rows that were counted, and their bins, by feature."""
    sums = {}
    for row in rows:
        one = sums.setdefault(row["feature"], [0, 0])
        one[0] += row["transactions"]
        one[1] += sum(each["transactions"] for each in row["bins"])
    return sums


@pytest.mark.parametrize("streaming", [False, True])
def test_profiles_sum_to_the_scored_rows(model_dir, streaming):
    manifest = artifact.verify(model_dir)
    names = {*manifest.ranges.quantiles, "anomaly_score"}
    with beam.Pipeline("FnApiRunner") as p:
        score = Score(PytorchHandler(str(model_dir), profile_every=1), CollectProfiles(streaming, seconds=0))
        batches = p | beam.Create([messages(40), messages(3, 40), messages(1, 43)])
        parsed = batches | Parse(MessageRules(TIME))
        rows = (parsed.transactions | score).profiles[0] | beam.FlatMap(lambda batch: batch.to_pylist())
        by_feature = rows | beam.Map(lambda row: (row["feature"], row)) | beam.GroupByKey()
        counts = by_feature | beam.MapTuple(lambda name, found: (name, *summed(found)[name]))
        assert_that(counts, equal_to([(name, 44, 44) for name in names]))


def bins_and_scored(model_dir, batch, every=1, scores=None):
    manifest = artifact.verify(model_dir)
    rules = ScoreRules(manifest.thresholds, "v1", "compact", manifest.spec, manifest.bins(every))
    columns = MessageColumns([each.data for each in batch])
    transactions = parse_messages(columns, MessageRules(TIME)).transactions
    n = transactions.num_rows
    outputs = {"anomaly_score": np.full(n, 1.0) if scores is None else np.array(scores)}
    return rules.bins, assemble_scores(transactions, outputs, rules, 0)


def test_a_row_that_cannot_be_scored_is_in_no_profile(model_dir):
    _, scored = bins_and_scored(model_dir, messages(4), scores=[1.0, np.nan, 2.0, np.inf])
    assert scored.dead_letters.num_rows == 2
    (sample,) = scored.samples
    assert sample.values[:, -1].tolist() == [1.0, 2.0]


def test_each_so_manieth_row_is_taken_and_the_same_ones_when_the_batch_comes_again(model_dir):
    bins, scored = bins_and_scored(model_dir, messages(95), every=10)
    (sample,) = scored.samples
    first = bins.first_row("t0")
    assert len(sample.values) == len(range(first, 95, 10))
    (again,) = bins_and_scored(model_dir, messages(95), every=10)[1].samples
    assert again.digest == sample.digest
    np.testing.assert_array_equal(again.values, sample.values)


def test_a_worker_holds_what_it_counted_for_a_minute(model_dir):
    held = Held(60)
    profiles = [Profile.of(bins_and_scored(model_dir, messages(5, first=5 * i))[1].samples) for i in range(4)]
    assert held.add([profiles[0]], 1_200.0)[1] == []
    assert held.add([profiles[1]], 1_259.9)[1] == []
    began, (due,) = held.add([profiles[2]], 1_260.0)
    assert (began, due.rows) == (1_200.0, 10)
    assert held.add([], 1_300.0)[1] == []
    began, (due,) = held.add([profiles[3]], 9_999.0)
    assert (began, due.rows) == (1_260.0, 5)


def test_a_row_says_how_the_training_was(model_dir):
    _, scored = bins_and_scored(model_dir, messages(100, offset=50.0))
    batch = profile_rows(Profile.of(scored.samples), 1_000_000)
    assert batch.schema == FEATURE_PROFILES
    row = next(row for row in batch.to_pylist() if row["feature"] == "V1")
    quantiles = artifact.verify(model_dir).feature_quantiles["V1"]
    assert [each["below"] for each in row["bins"]][: len(PROBABILITIES) - 1] == pytest.approx(
        [np.float32(value) for value in quantiles[:-1]]
    )
    assert (row["outside"], row["bins"][-1]) == (
        100,
        {"place": 21, "below": None, "transactions": 100, "share": 0.0},
    )
    assert sum(each["share"] for each in row["bins"]) == pytest.approx(1)
    assert all(0.03 < each["share"] < 0.07 for each in row["bins"][1:-1])
    assert row["missing_share"] is None


def test_an_older_manifest_has_the_shares_of_its_quantiles(model_dir):
    manifest = artifact.verify(model_dir)
    text = json.loads(manifest.to_json())
    del text["feature_shares"], text["missing_shares"]
    older = artifact.Manifest.from_json(json.dumps(text))
    np.testing.assert_allclose(older.bins(1).shares.sum(axis=1), 1)
    np.testing.assert_allclose(older.bins(1).shares, manifest.bins(1).shares, atol=0.01)


def test_missing_values_are_nulls_nan_and_empty_texts():
    assert count_missing(pa.array([1.0, None, np.nan])) == 2
    assert count_missing(pa.array(["a", "", None])) == 2
    assert count_missing(pa.array(["a", "", "a"]).dictionary_encode()) == 1
    assert count_missing(pa.array([], pa.string())) == 0
