"""A model of other features than ULB's: nested fields, categories, missing values, unicode."""

from __future__ import annotations

import dataclasses
import datetime as dt
import gzip
import json
import logging

import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from features.columns import ColumnEncoder, field_columns
from features.declaration import FeatureSpec
from features.profiles import Profile
from features.ranges import FeatureWatch
from features.rows import RowEncoder
from model import artifact, data, evaluate, evaluation, package, train
from model.artifact import ArtifactError
from model.dataset import DataError
from model.network import TransactionAutoencoder, layers
from model.serving.predictor import Predictor
from model.serving.request import BadRequestError
from model.torchscript import trace
from tests.model.test_handler import unpacked
from transforms.forms import Encoding
from transforms.message import MessageColumns, MessageRules, parse_messages
from transforms.profiles import profile_rows
from transforms.scores import ScoreRules, assemble_scores

SPEC = """
transaction_id: id
account: card.account
event_time: {from: time, format: rfc3339}
amount: amount
label: is_fraud
features:
  - {name: amount, kind: number, scale: log}
  - {name: age, from: card.age, kind: number, use: reconstruction, missing: 0}
  - {name: risk, kind: number, missing: median}
  - {name: tip, kind: number, scale: log, missing: 0}
  - {name: present, kind: boolean}
  - {name: category, from: merchant.category, kind: category, keep: 3}
  - {name: country, from: merchant.country, kind: category, missing: own}
  - {name: hour, kind: time_of_day, timezone: Europe/Berlin}
  - {name: weekday, kind: day_of_week, timezone: Europe/Berlin}
"""
CATEGORIES = ("épicerie", "料理", "fuel", "jewels", "travel")


def payments(n: int, seed: int = 0, fraud_share: float = 0.01) -> pa.Table:
    """Payments whose frauds are large, at night, and at jewellers."""
    rng = np.random.default_rng(seed)
    is_fraud = rng.random(n) < fraud_share
    amount = np.exp(rng.normal(3, 1, n)) * np.where(is_fraud, 20, 1)
    hours = np.where(is_fraud, rng.uniform(0, 5, n), rng.normal(14, 3, n) % 24)
    moments = ((rng.integers(0, 60, n) * 24 + hours) * 3600e6).astype(np.int64) + 1_750_000_000_000_000
    category = np.where(is_fraud, "jewels", rng.choice(CATEGORIES, n, p=[0.5, 0.3, 0.17, 0.02, 0.01]))
    merchant = pa.StructArray.from_arrays(
        [pa.array(category), pa.array(rng.choice(["FR", "DE", None], n, p=[0.7, 0.2, 0.1]))],
        names=["category", "country"],
    )
    card = pa.StructArray.from_arrays(
        [pa.array([f"a{i % 500}" for i in range(n)]), pa.array(rng.uniform(0, 900, n))],
        names=["account", "age"],
    )
    return pa.table(
        {
            "id": [f"t-{i}" for i in range(n)],
            "card": card,
            "time": pa.array(moments, pa.timestamp("us", tz="UTC")),
            "amount": amount,
            "risk": pa.array(rng.normal(0, 1, n), mask=rng.random(n) < 0.2),
            "tip": pa.array(np.where(rng.random(n) < 0.2, rng.exponential(3, n), 0.0)),
            "present": rng.random(n) < 0.9,
            "merchant": merchant,
            "note": ["x"] * n,
            "is_fraud": pa.array(np.where(is_fraud, "true", "false")),
        }
    )


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "features.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("payments") / "payments.parquet"
    parquet.write_table(payments(8_000), path)
    return path


@pytest.fixture(scope="module")
def model_dir(spec_file, source, tmp_path_factory):
    directory = tmp_path_factory.mktemp("own") / "model"
    flags = [f"--data={source}", f"--features={spec_file}", f"--output={directory}", "--epochs=10"]
    assert train.main([*flags, "--model_version=own-1"]) == 0
    return directory


@pytest.fixture(scope="module")
def own_handler(own, tmp_path_factory):
    return unpacked(own, tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="module")
def own(model_dir):
    return artifact.read(model_dir)


def test_the_manifest_carries_the_spec_and_what_was_learnt(own, spec_file):
    manifest = own.manifest
    assert manifest.spec == data.DataOptions(features=str(spec_file)).spec
    assert manifest.features == manifest.spec.names
    rarity = manifest.learnt.categories["category"]
    assert rarity.values == CATEGORIES[:3]
    assert rarity.other > max(rarity.rarities)
    assert manifest.learnt.medians == {"risk": pytest.approx(0, abs=0.1)}
    assert tuple(manifest.feature_quantiles) == manifest.spec.inputs
    assert artifact.Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.provenance["columns_not_used"] == ["note"]
    missing = manifest.missing_shares
    assert {"age", "risk", "tip", "country"} <= set(missing) <= set(manifest.features)
    assert (missing["risk"], missing["tip"]) == (pytest.approx(0.2, abs=0.02), 0.0)


def test_a_profile_counts_missing_values_beside_their_share_in_the_training(own):
    spec, table = own.manifest.spec, payments(400)
    rules = MessageRules(
        dt.datetime.now(dt.UTC), roles=spec.roles, encoding=Encoding(spec, own.manifest.learnt)
    )
    rows = table.drop_columns(["is_fraud"]).to_pylist()
    for i, row in enumerate(rows):
        row["risk"] = None if i % 2 else 0.5
        row["tip"] = row["tip"] if i % 4 else None
    payloads = [json.dumps(row, default=lambda moment: moment.isoformat()).encode() for row in rows]
    transactions = parse_messages(MessageColumns(payloads), rules).transactions
    assert transactions.num_rows == 400
    bins = own.manifest.bins(1)
    assert not {"hour", "age"} & set(bins.names)  # a feed has its hours; age is not in the score
    scored = assemble_scores(
        transactions,
        {"anomaly_score": np.zeros(400)},
        ScoreRules(own.manifest.thresholds, "v1", "compact", spec, bins),
        0,
    )
    profile = profile_rows(Profile.of(scored.samples), 0).to_pylist()
    shown = {row["feature"]: (row["missing"], row["missing_share"]) for row in profile}
    assert shown["risk"] == (200, own.manifest.missing_shares["risk"])
    assert shown["tip"] == (100, 0.0)
    assert shown["amount"] == (0, None)


def test_frauds_are_found_and_the_test_part_judged_at_its_own_prevalence(own):
    figures = own.manifest.figures
    assert figures["scores"]["anomaly_score"]["auroc"] > 0.95
    assert figures["prevalence"] == pytest.approx(0.01, abs=0.003)


def test_no_feature_takes_over_the_score_of_normals(own):
    shares = own.manifest.training["score_shares"]
    assert set(shares) == set(own.manifest.features) - {"age"}
    assert sum(entry["share"] for entry in shares.values()) == pytest.approx(1)
    assert max(entry["share"] for entry in shares.values()) < 0.4


def test_columns_rows_and_the_archive_get_the_same_scores(own, own_handler):
    table = payments(50, seed=9)
    spec, learnt = own.manifest.spec, own.manifest.learnt
    columns = ColumnEncoder(spec, learnt).encode(field_columns(table, spec.fields))
    messages = [
        json.loads(orjson.dumps(row | {"time": row["time"].isoformat()})) for row in table.to_pylist()
    ]
    rows = RowEncoder(spec, learnt).encode(messages)
    np.testing.assert_allclose(rows.inputs, columns.inputs, rtol=1e-6, atol=1e-6)
    expected = evaluation.anomaly_scores(own.load_model(), columns.inputs)
    lists = [
        [m["amount"], m["card"]["age"], m["risk"], m["tip"], m["present"], *m["merchant"].values(), m["time"]]
        for m in messages
    ]
    for instances in (messages, lists):
        handler, context = own_handler
        context.expect(1)
        (answer,) = handler.handle([{"body": {"instances": instances}}], context)
        predictions = orjson.loads(answer)["predictions"]
        np.testing.assert_allclose([p["anomaly_score"] for p in predictions], expected, rtol=1e-5)


def test_the_container_answers_as_the_pipeline_does(own):
    table = payments(20, seed=11)
    spec = own.manifest.spec
    columns = ColumnEncoder(spec, own.manifest.learnt).encode(field_columns(table, spec.fields))
    messages = [row | {"time": row["time"].isoformat()} for row in table.to_pylist()]
    predictor = Predictor(own)
    request = predictor.parse(orjson.dumps({"instances": messages}))
    scores = predictor.outputs(request.features, ["anomaly_score"])["anomaly_score"]
    np.testing.assert_allclose(scores, evaluation.anomaly_scores(own.load_model(), columns.inputs), rtol=1e-5)
    messages[3]["present"] = "perhaps"
    with pytest.raises(BadRequestError, match=r"instances\[3\].present: expected true or false"):
        predictor.parse(orjson.dumps({"instances": messages}))


def test_the_handler_names_the_field_of_a_bad_instance(own_handler):
    handler, context = own_handler
    context.expect(1)
    (answer,) = handler.handle([{"body": {"instances": [{"amount": "much"}]}}], context)
    assert "instances[0]: amount: expected a finite number" in orjson.loads(answer)["message"]


def test_the_model_is_judged_on_its_test_part_again(model_dir, source, capsys):
    assert evaluate.main([f"--model={model_dir}", f"--data={source}", "--format=json"]) == 0
    rows = {row["score"]: row for row in json.loads(capsys.readouterr().out)}
    figures = artifact.verify(model_dir).figures["scores"]["anomaly_score"]
    assert rows["anomaly_score"]["auroc"] == pytest.approx(figures["auroc"])
    assert evaluate.main([f"--model={model_dir}", f"--data={source}", "--features=x.yaml"]) == 2


def test_the_same_seed_gives_the_same_model(own, source, spec_file, tmp_path):
    flags = [f"--data={source}", f"--features={spec_file}", f"--output={tmp_path / 'again'}", "--epochs=10"]
    assert train.main(flags) == 0
    again = artifact.read(tmp_path / "again")
    first, second = (read.load_model(freeze=False).state_dict() for read in (own, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.manifest.learnt == own.manifest.learnt


def test_lines_of_json_are_read_as_parquet_is(spec_file, tmp_path):
    spec = data.DataOptions(features=str(spec_file)).spec
    table = payments(2_000)
    parquet.write_table(table, tmp_path / "p.parquet")
    lines = b"\n".join(orjson.dumps(row) for row in table.to_pylist())
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    columns, rows = (data.load(str(tmp_path / name), spec=spec) for name in ("p.parquet", "p.jsonl.gz"))
    np.testing.assert_array_equal(rows.features, columns.features)
    np.testing.assert_array_equal(rows.labels, columns.labels)
    np.testing.assert_array_equal(rows.times, columns.times)
    assert rows.learnt == columns.learnt


def test_frauds_teach_no_category(spec_file, tmp_path):
    spec = data.DataOptions(features=str(spec_file)).spec
    table = payments(6_000)
    is_fraud = np.array(table["is_fraud"].to_pylist()) == "true"
    merchants = [
        {**row, "category": "only frauds"} if fraud else row
        for row, fraud in zip(table["merchant"].to_pylist(), is_fraud, strict=True)
    ]
    at = table.column_names.index("merchant")
    parquet.write_table(table.set_column(at, "merchant", pa.array(merchants)), tmp_path / "p.parquet")
    dataset = data.load(str(tmp_path / "p.parquet"), spec=dataclasses.replace(spec))
    assert "only frauds" not in dataset.learnt.categories["category"].values


def test_the_report_says_what_was_learnt(spec_file, source, tmp_path, capsys):
    table = parquet.read_table(source)
    amounts = table["amount"].to_pylist()
    amounts[:30] = [None] * 30
    at = table.column_names.index("amount")
    parquet.write_table(table.set_column(at, "amount", pa.array(amounts)), tmp_path / "p.parquet")
    flags = [f"--data={tmp_path / 'p.parquet'}", f"--features={spec_file}", f"--output={tmp_path / 'm'}"]
    assert train.main([*flags, "--epochs=1"]) == 0
    printed = capsys.readouterr().out
    assert "Rows left out, because the feature spec refuses them, by field: amount (30)" in printed
    assert (
        "category: 3 values have a rarity of their own, the most frequent are épicerie, 料理, fuel" in printed
    )
    assert "risk: the median" in printed
    assert "Columns not used: note" in printed
    assert "Took" in printed
    for name in ("hour_sin", "weekday_cos", "age"):
        assert f"\n{name} " in printed


def test_times_of_the_day_are_never_out_of_range(own, caplog):
    spec, ranges = own.manifest.spec, own.manifest.ranges
    assert set(ranges.quantiles) == {"amount", "risk", "tip", "present", "category", "country"}
    table = payments(600, seed=4, fraud_share=0)
    night = pa.array([1_750_000_000_000_000] * 600, pa.timestamp("us", tz="UTC"))
    columns = field_columns(table.set_column(table.column_names.index("time"), "time", night), spec.fields)
    with caplog.at_level(logging.WARNING):
        FeatureWatch(ranges).look(ColumnEncoder(spec, own.manifest.learnt).encode(columns).inputs)
    assert not caplog.records


def test_a_spec_and_a_graph_that_do_not_fit_are_told(own, tmp_path):
    other = TransactionAutoencoder(
        FeatureSpec.from_json({"features": [{"name": "amount", "kind": "number"}]})
    )
    path = tmp_path / artifact.MODEL_FILE
    trace(other).save(str(path))
    written = artifact.write(tmp_path / "out", own.manifest, [path])
    with pytest.raises(ArtifactError, match=r"graph in .* has 1 inputs, and the feature spec in .* makes 11"):
        written.load_model()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"learnt": {"categories": {}, "medians": {}}}, "expected the median of 'risk'"),
        ({"spec": {"features": []}}, "features: expected a list of features"),
        ({"features": ["amount"]}, "features differ from those of the feature spec"),
    ],
)
def test_a_manifest_whose_parts_do_not_fit_is_refused(own, changes, text):
    content = json.loads(own.manifest.to_json()) | changes
    with pytest.raises(ArtifactError, match=text):
        artifact.Manifest.from_json(json.dumps(content))


def test_a_manifest_of_before_feature_specs_is_that_of_ulb(trained):
    content = json.loads(trained.manifest.to_json()) | {"format": 1}
    for name in ("spec", "learnt", "feature_quantiles", "feature_shares", "missing_shares"):
        del content[name]
    old = artifact.Manifest.from_json(json.dumps(content))
    assert old.spec == trained.manifest.spec
    assert old.ranges.quantiles == {}


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (30, (30, 16, 8, 4)),
        (12, (12, 7, 4, 3)),
        (5, (5, 3, 2, 1)),
        (1, (1, 1, 1, 1)),
        (100, (100, 54, 27, 4)),
    ],
)
def test_the_layers_follow_the_number_of_inputs(n, sizes):
    assert layers(n) == sizes


def test_packages_take_the_width_of_the_spec(own, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX is an extra: pip install .[export]")
    assert [path.name for path in package.package(own, tmp_path)] == [
        artifact.ARCHIVE_FILE,
        package.ONNX_FILE,
        package.EXPORT_FILE,
    ]


def test_a_split_by_time_needs_times(spec_file):
    spec = data.DataOptions(features=str(spec_file)).spec
    table = payments(6_000)
    assert data.from_arrow(table, "x", spec=spec).times is not None
    timeless = FeatureSpec.from_json({"features": [{"name": "amount", "kind": "number"}]})
    with pytest.raises(DataError, match="--split=time: expected a column 'event_time'"):
        data.split(data.from_arrow(table, "x", "", timeless), 0, "time")
