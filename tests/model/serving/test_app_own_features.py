"""The container with models of own features: it does what its descriptions say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from features.declaration import FeatureSpec, getter
from features.learnt import Learnt, Rarity
from features.schema import instance_schema
from model.serving import inference_protocol
from model.serving.predictor import Predictor
from model.serving.request import BadRequestError
from tests.features.cases import rows
from tests.features.test_schema import JUNK, is_outlandish
from tests.model.serving.artifacts import build_own_artifact
from tests.model.serving.servers import container
from tests.model.serving.test_app_openapi import CONFIG

RARITY = Rarity.of_counts({"fuel": 5, "料理": 3, "Käse": 1}, 1, 3)
CARDS = FeatureSpec.from_json(
    {
        "event_time": {"from": "time", "format": "any"},
        "features": [
            {"name": "amount", "kind": "number", "scale": "log"},
            {"name": "risk", "from": "card.risk", "kind": "number", "missing": "median"},
            {"name": "present", "kind": "boolean"},
            {"name": "category", "from": "merchant.category", "kind": "category", "missing": "own"},
            {"name": "country", "from": "merchant.country", "kind": "category"},
            {"name": "hour", "kind": "time_of_day", "timezone": "Europe/Berlin"},
            {"name": "weekday", "kind": "day_of_week"},
        ],
    }
)
LENIENT = FeatureSpec.from_json(
    {
        "features": [
            {"name": "Betrag", "from": "zahlung.größe", "kind": "number", "missing": 0},
            {"name": "neu", "kind": "boolean", "missing": True},
        ]
    }
)
NESTED = FeatureSpec.from_json(
    {
        "features": [
            {"name": "age", "from": "card.age", "kind": "number"},
            {"name": "amount", "kind": "number"},
        ]
    }
)
SPECS = {"cards": CARDS, "lenient": LENIENT, "nested numbers": NESTED}
PAYMENT = {
    "amount": 12.5,
    "card": {"risk": None},
    "present": True,
    "merchant": {"category": "料理", "country": "NZ"},
    "time": "2026-03-01T11:00:00Z",
}


def learnt_of(spec: FeatureSpec) -> Learnt:
    return Learnt(
        {feature.name: RARITY for feature in spec.features if feature.kind == "category"},
        {feature.name: 0.5 for feature in spec.features if feature.missing == "median"},
    )


@pytest.fixture(scope="module", params=SPECS)
def predictor(request, tmp_path_factory) -> Predictor:
    spec = SPECS[request.param]
    return Predictor(build_own_artifact(tmp_path_factory.mktemp("own"), spec, learnt_of(spec)))


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> Predictor:
    return Predictor(build_own_artifact(tmp_path_factory.mktemp("cards"), CARDS, learnt_of(CARDS)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_valid_instances_are_scored_and_others_are_refused(predictor, data):
    spec = predictor.manifest.spec
    objects = data.draw(rows(spec, least=1))[0]
    objects[0] |= data.draw(
        st.dictionaries(st.sampled_from([*objects[0], "features", "x"]), JUNK, max_size=2)
    )
    objects = orjson.loads(orjson.dumps(objects))
    validator = Draft202012Validator(instance_schema(spec))
    lists = [[getter(field)(row) for field in spec.fields] for row in objects]
    for instance in (*objects, *lists, lists[0][1:], {}):
        has_fields_of_its_own = "features" in instance and validator.is_valid(instance["features"])
        if is_outlandish(instance) or has_fields_of_its_own:
            continue
        body = orjson.dumps({"instances": [instance]})
        if validator.is_valid(instance):
            answer, scores = predictor.answer(predictor.parse(body))
            assert len(scores) == 1
            assert b"anomaly_score" in answer
        else:
            with pytest.raises(BadRequestError):
                predictor.parse(body)


def tensors(*payments: dict) -> list[dict]:
    columns = {field: [getter(field)(payment) for payment in payments] for field in CARDS.fields}
    datatypes = {one["name"]: one["datatype"] for one in inference_protocol.own_tensors(CARDS)}
    return [
        {"name": name, "datatype": datatypes[name], "shape": [len(values)], "data": values}
        for name, values in columns.items()
    ]


def test_tensors_of_own_features_are_scored_as_objects_are(cards):
    payments = [PAYMENT, PAYMENT | {"amount": 9000, "present": False}]
    expected = cards.parse(orjson.dumps({"instances": payments})).features
    inputs = tensors(*payments)
    nested = [{**one, "shape": [2, 1], "data": [[value] for value in one["data"]]} for one in inputs]
    for given_inputs in (inputs, nested, [one for one in inputs if one["name"] != "card.risk"]):
        request = inference_protocol.parse_for(cards, orjson.dumps({"inputs": given_inputs}))
        np.testing.assert_array_equal(request.features, expected)
    answer, scores = inference_protocol.answer(cards, request)
    assert len(orjson.loads(answer)["outputs"][0]["data"]) == len(scores) == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda inputs: inputs[1:], r"instances\[0\].amount: expected a finite number .*, got null"),
        (lambda inputs: [*inputs, {**inputs[0], "name": "hour_sin"}], "got 'hour_sin'"),
        (lambda inputs: [*inputs, inputs[0]], "expected each name once"),
        (lambda inputs: [*inputs[:-1], {**inputs[-1], "data": [], "shape": [0]}], "as many values"),
        (lambda inputs: [{**one, "data": [], "shape": [0]} for one in inputs], "at least one row"),
        (lambda inputs: [], "at least one row"),
        (lambda inputs: [{**inputs[0], "datatype": "TEXT"}, *inputs[1:]], "expected a datatype of FP16"),
        (lambda inputs: [{**inputs[0], "data": ["much"]}, *inputs[1:]], "amount: .* got a text"),
    ],
)
def test_tensors_that_break_a_rule_are_refused(cards, change, text):
    with pytest.raises(BadRequestError, match=text):
        inference_protocol.parse_for(cards, orjson.dumps({"inputs": change(tensors(PAYMENT))}))


def test_the_metadata_of_the_protocol_names_a_tensor_of_each_field(cards):
    inputs = {one["name"]: one for one in inference_protocol.metadata(cards)["inputs"]}
    assert {name: one["datatype"] for name, one in inputs.items()} == {
        "amount": "FP64",
        "card.risk": "FP64",
        "present": "BOOL",
        "merchant.category": "BYTES",
        "merchant.country": "BYTES",
        "time": "BYTES",
    }
    assert {name for name, one in inputs.items() if one["parameters"]["nullable"]} == {
        "card.risk",
        "merchant.category",
    }
    assert inputs["time"]["parameters"]["kinds"] == ["time_of_day", "day_of_week"]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["cards", "lenient"])
def test_a_server_of_own_features_does_what_its_document_says(name, tmp_path):
    """Schemathesis, as for the default features."""
    built = build_own_artifact(tmp_path / "model", SPECS[name], learnt_of(SPECS[name]))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with container(built.uri) as served:
        about = requests.get(f"{served.url}/metadata", timeout=30).json()
        Draft202012Validator.check_schema(about["instance_schema"])
        assert about["inputs"] == list(SPECS[name].inputs)
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{served.url}/openapi.json"]
        command += [
            "--phases",
            "coverage,fuzzing",
            "--max-examples",
            "20",
            "--seed",
            "1",
            "--include-path-regex",
            "/predict|metadata|v2/models/{model_name}",
        ]
        command += ["--suppress-health-check", "all", "--generation-database", "none", "--no-color"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
