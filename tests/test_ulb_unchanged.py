"""The model of the ULB table as one feature spec among others: contract and fast way are unchanged."""

from __future__ import annotations

import datetime as dt
import json

import numpy as np
import orjson
import pyarrow as pa
import pytest

from features.columns import ColumnEncoder, field_columns
from features.declaration import FeatureSpec
from features.default import ULB
from features.rows import RowEncoder
from model import inference
from model.artifact import Artifact, Manifest, read
from model.outputs import ANSWER_FIELDS
from model.serving.own_features import SpecParser
from model.serving.predictor import Predictor
from model.serving.request import RequestParser
from tests.model.serving.artifacts import build_artifact, transactions
from transforms.columnar import to_transactions
from transforms.forms import Encoding, ListForm, ObjectForm
from transforms.message import MessageColumns, MessageRules, parse_messages
from transforms.scores import feature_matrix

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ROWS = transactions(200, seed=3)
ENCODING = Encoding()
NAMES = ("Time", *(f"V{i}" for i in range(1, 29)), "Amount")
OUTPUTS = (
    "encoded",
    *("normalized_reconstruction", "normalized_reconstruction_errors"),
    *("normalized_MAE", "normalized_RMSE", "normalized_MSE", "normalized_MSLE"),
    *("denormalized_reconstruction", "denormalized_reconstruction_errors"),
    *("denormalized_MAE", "denormalized_RMSE", "denormalized_MSE", "denormalized_MSLE"),
    "anomaly_score",
)
"""13 outputs, and the score."""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Artifact:
    """A network of a fixed seed."""
    return build_artifact(tmp_path_factory.mktemp("ulb"), seed=11)


def bits(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, np.float32).tobytes()


def messages(as_list: bool) -> list[bytes]:
    rows = ROWS.tolist()
    return [
        orjson.dumps({"features": row} if as_list else dict(zip(NAMES, row, strict=True))) for row in rows
    ]


class Forced(Encoding):
    """The encoding of the default spec by the way of all others."""

    is_list = False  # type: ignore[assignment]


def test_the_contract_is_30_numbers_in_order():
    assert ULB.fields == ULB.inputs == ULB.names == NAMES
    assert ULB.is_numeric
    assert isinstance(ENCODING.form, ListForm)
    assert isinstance(Forced().form, ObjectForm)
    assert FeatureSpec.from_json(json.loads(json.dumps(ULB.to_json()))) == ULB


@pytest.mark.parametrize("encoding", [ENCODING, Forced()], ids=["fast", "general"])
def test_every_way_in_gives_the_same_bits(encoding):
    rules = MessageRules(default_time=NOW, encoding=encoding)
    named = dict(zip(NAMES, ROWS.T, strict=True))
    tables = [pa.record_batch(named), pa.record_batch({name: named[name] for name in reversed(NAMES)})]
    parsed = [parse_messages(MessageColumns(messages(as_list=False)), rules)]
    parsed += [to_transactions(table, NOW, rules) for table in tables]
    if encoding is ENCODING:
        parsed.append(parse_messages(MessageColumns(messages(as_list=True)), rules))
        parsed.append(to_transactions(pa.record_batch({"features": ROWS.tolist()}), NOW, rules))
    for one in parsed:
        assert one.dead_letters.num_rows == 0
        assert bits(feature_matrix(one.transactions)) == bits(ROWS)


def test_servers_and_encoders_give_the_same_bits():
    rows = ROWS.tolist()
    objects = [dict(zip(NAMES, row, strict=True)) for row in rows]
    columns = field_columns(pa.table(dict(zip(NAMES, ROWS.T, strict=True))), NAMES)
    by_columns = ColumnEncoder(ULB).encode(columns)
    encoded = [by_columns.inputs]
    encoded += [RowEncoder(ULB).encode(instances).inputs for instances in (rows, objects)]
    for parser in (RequestParser(NAMES), SpecParser(ULB, ENCODING.learnt)):
        for instances in (rows, objects, [{"features": row} for row in rows]):
            encoded.append(parser.parse(orjson.dumps({"instances": instances})).features)
    assert {bits(inputs) for inputs in encoded} == {bits(ROWS)}


def test_the_outputs_of_a_network_of_a_fixed_seed_are_the_same_bits_by_both_ways(built):
    module = built.load_model()
    matrices = [
        feature_matrix(
            parse_messages(
                MessageColumns(messages(as_list=False)), MessageRules(default_time=NOW, encoding=encoding)
            ).transactions
        )
        for encoding in (ENCODING, Forced())
    ]
    golden, general = (inference.outputs(module, matrix, ANSWER_FIELDS) for matrix in matrices)
    assert set(golden) == set(general)
    for name, values in golden.items():
        assert bits(values) == bits(general[name]), name


def test_a_server_answers_30_numbers_with_13_outputs_and_the_score(built):
    predictor = Predictor(built)
    body = orjson.dumps({"instances": ROWS[:2].tolist(), "parameters": {"fields": OUTPUTS}})
    answer, _ = predictor.answer(predictor.parse(body))
    (first, _) = orjson.loads(answer)["predictions"]
    assert tuple(first) == OUTPUTS
    sizes = {name: len(value) for name, value in first.items() if isinstance(value, list)}
    assert set(sizes.values()) == {4, 30}


def test_a_manifest_of_format_1_is_read_and_scores_the_same_bits(built, tmp_path):
    content = json.loads(built.manifest.to_json()) | {"format": 1}
    for name in ("spec", "learnt", "feature_quantiles"):
        del content[name]
    for file in built.local_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    old = read(tmp_path)
    assert old.manifest.spec == ULB
    assert old.manifest == Manifest.from_json(built.manifest.to_json())
    first, second = (inference.outputs(one.load_model(), ROWS, OUTPUTS) for one in (old, built))
    assert {name: bits(first[name]) for name in OUTPUTS} == {name: bits(second[name]) for name in OUTPUTS}
