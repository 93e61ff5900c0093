"""The handler as it lies in the archive; at the end under TorchServe's own loader, context and envelope."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import orjson
import pytest

from features.ulb import FEATURES
from model.artifact import ARCHIVE_FILE
from model.outputs import FIELDS
from tests.model.test_network import answers


class Context:
    """The context that TorchServe hands to a handler, as far as this one uses it."""

    def __init__(self, model_dir: Path, manifest: dict) -> None:
        self.system_properties = {"model_dir": str(model_dir), "gpu_id": None}
        self.manifest = manifest
        self.expect(1)

    def expect(self, requests: int) -> None:
        """Starts a dynamic batch of so many requests."""
        self.request_ids = {i: f"id-{i}" for i in range(requests)}
        self.status = [200] * requests
        self.content_type: dict[int, str] = {}
        self.headers: dict[int, dict[str, str]] = {}

    def get_request_header(self, idx: int, key: str) -> str | None:
        return self.headers.get(idx, {}).get(key)

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.status[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.content_type[idx] = value


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory):
    """Handler and context of the unpacked archive."""
    return unpacked(trained, tmp_path_factory.mktemp("unpacked"))


def unpacked(packed, directory):
    """Unpacks the archive of an artifact; its handler, initialised, and the context."""
    with zipfile.ZipFile(packed.local_dir / ARCHIVE_FILE) as archive:
        archive.extractall(directory)
    spec = importlib.util.spec_from_file_location("archived_handler", directory / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    context = Context(directory, json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text()))
    handler = module.TransactionHandler()
    handler.initialize(context)
    return handler, context


@pytest.fixture
def ask(served):
    """Sends a dynamic batch of request bodies; gives answers and statuses."""
    handler, context = served

    def send(*bodies, envelope: bool = False, requests: int | None = None):
        context.expect(requests or len(bodies))
        data = list(bodies) if envelope else [{"body": body} for body in bodies]
        got = handler.handle(data, context)
        assert len(got) == len(bodies)
        return [orjson.loads(a) if isinstance(a, bytes) else a for a in got], context.status

    return send


@pytest.fixture(scope="module")
def rows(normals) -> list[list[float]]:
    return normals[:6].astype(float).tolist()


@pytest.fixture(scope="module")
def expected(module, rows) -> dict[str, np.ndarray]:
    return answers(module, np.asarray(rows, np.float32))


def assert_predictions(predictions: list[dict], expected: dict[str, np.ndarray], start: int = 0) -> None:
    for i, prediction in enumerate(predictions, start):
        assert tuple(prediction) == FIELDS
        for name, value in prediction.items():
            np.testing.assert_allclose(value, expected[name][i], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_label_beside_the_named_features_is_ignored(ask, rows, expected):
    named = dict(zip(FEATURES, rows[0], strict=True)) | {"Class": 1}
    got, status = ask({"instances": [named]})
    assert status == [200]
    assert_predictions(got[0]["predictions"], expected, 0)


def test_the_archived_handler_imports_without_the_repository(served, trained, tmp_path):
    """In the server the archive's directory is on the path and the package `model` is not."""
    import subprocess

    _, context = served
    code = "import sys; sys.path.insert(0, sys.argv[1]); import handler; print(handler.RowEncoder.__module__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, context.system_properties["model_dir"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "features.rows"


def test_a_whole_request_is_answered_as_the_model_answers(ask, rows, expected):
    ((answer,), status) = ask(json.dumps({"instances": rows}).encode())
    assert status == [200]
    assert list(answer) == ["predictions", "metadata"]
    assert_predictions(answer["predictions"], expected)


def test_a_whole_request_is_answered_with_the_version_of_the_model(ask, rows, trained):
    ((answer,), _) = ask(json.dumps({"instances": rows}).encode())
    assert answer["metadata"] == {"model_version": trained.manifest.model_version}


@pytest.mark.parametrize(
    "fields", [["contributions"], ["anomaly_score", "contributions"], ["normalized_MAE"]]
)
def test_an_instance_may_name_its_own_fields(ask, rows, expected, fields):
    """Under the json envelope, which drops `parameters`."""
    items = [{"features": row, "fields": fields} for row in rows[:2]] + [rows[2], {"features": rows[3]}]
    got, _ = ask(*items, envelope=True, requests=1)
    assert [tuple(answer) for answer in got] == [tuple(fields), tuple(fields), FIELDS, FIELDS]
    for i, answer in enumerate(got):
        for name, value in answer.items():
            if name in expected:
                np.testing.assert_allclose(value, expected[name][i], rtol=1e-4, atol=1e-5, err_msg=name)
        if "contributions" in answer:
            np.testing.assert_allclose(sum(answer["contributions"]), expected["anomaly_score"][i], rtol=1e-4)


def test_an_unknown_field_of_an_instance_is_refused(ask, rows):
    ((answer,), _) = ask({"features": rows[0], "fields": ["score"]}, envelope=True)
    assert "unknown field 'score'" in answer["message"]


def test_a_body_that_the_server_has_decoded_is_taken_too(ask, rows, expected):
    ((answer,), status) = ask({"instances": rows[:2]})
    assert status == [200]
    assert_predictions(answer["predictions"], expected)


def test_every_form_of_one_instance(ask, rows, expected):
    row = rows[0]
    named = dict(zip(FEATURES, row, strict=True))
    forms = [row, named, json.dumps(row), json.dumps(named).encode(), bytearray(json.dumps(row).encode())]
    got, status = ask(*forms)
    assert status == [200] * 5
    for answer in got:
        assert_predictions([answer], expected)


@pytest.mark.parametrize("kind", ["list", "dict", "bytes", "text"])
def test_instances_as_the_json_envelope_passes_them_on(ask, rows, expected, kind):
    convert = {
        "list": lambda row: row,
        "dict": lambda row: dict(zip(FEATURES, row, strict=True)),
        "bytes": lambda row: json.dumps(row).encode(),
        "text": json.dumps,
    }[kind]
    got, status = ask(*map(convert, rows), envelope=True, requests=1)
    assert status == [200]
    assert_predictions(got, expected)


def test_requests_of_a_dynamic_batch_get_their_own_rows(ask, rows, expected):
    bodies = [{"instances": rows[:1]}, rows[1], {"instances": rows[2:5]}]
    got, status = ask(*bodies)
    assert status == [200] * 3
    assert_predictions(got[0]["predictions"], expected, 0)
    assert_predictions([got[1]], expected, 1)
    assert_predictions(got[2]["predictions"], expected, 2)


def test_fields_can_be_chosen_and_contributions_asked_for(ask, rows, expected):
    body = {"instances": rows, "parameters": {"fields": ["contributions", "anomaly_score"]}}
    got, _ = ask(body, {"instances": rows[:1]})
    for prediction in got[0]["predictions"]:
        assert list(prediction) == ["contributions", "anomaly_score"]
        assert sum(prediction["contributions"]) == pytest.approx(prediction["anomaly_score"], rel=1e-4)
    assert tuple(got[1]["predictions"][0]) == FIELDS


def broken(rows: list[list[float]], value: object, at: int = 3) -> list:
    return [*rows[0][:at], value, *rows[0][at + 1 :]]


BAD = [
    (lambda rows: rows[0][:29], "expected 30 numbers, got 29"),
    (lambda rows: [*rows[0], 1.0], "expected 30 numbers, got 31"),
    (lambda rows: broken(rows, None), "V3: expected a number, got null"),
    (lambda rows: broken(rows, True), "V3: expected a number, got bool"),
    (lambda rows: broken(rows, "1,5"), "V3: expected a number, got str"),
    (lambda rows: broken(rows, [1.0]), "V3: expected a number, got list"),
    (lambda rows: broken(rows, float("nan")), "V3: not a finite float32 number"),
    (lambda rows: broken(rows, float("-inf"), 29), "Amount: not a finite float32 number"),
    (lambda rows: broken(rows, 1e39), "V3: not a finite float32 number"),
    (lambda rows: broken(rows, 10**400), "V3: not a finite float32 number"),
    (lambda rows: dict.fromkeys(FEATURES[:-1], 0.0), "feature(s) missing: Amount"),
    (lambda rows: 7, "expected a list of 30 numbers or an object, got int"),
    (lambda rows: "{nonsense", "the body is not JSON"),
]


@pytest.mark.parametrize(("make", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_instance_is_a_400_that_names_it_and_spares_its_neighbours(ask, rows, expected, make, reason):
    bad = make(rows)
    got, status = ask({"instances": rows[:2]}, {"instances": [rows[0], rows[1], bad]}, rows[2])
    assert status == [200, 400, 200]
    assert got[1]["code"] == 400
    assert got[1]["message"].startswith("instances[2]: ")
    assert reason in got[1]["message"]
    assert_predictions(got[0]["predictions"], expected, 0)
    assert_predictions([got[2]], expected, 2)


@pytest.mark.parametrize(("make", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_instance_under_the_envelope(ask, rows, expected, make, reason):
    got, status = ask(rows[0], make(rows), rows[2], envelope=True, requests=1)
    assert status == [400]
    assert got[1]["message"].startswith("instances[1]: ")
    assert reason in got[1]["message"]
    assert_predictions([got[0]], expected, 0)
    assert_predictions([got[2]], expected, 2)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        ({"instances": []}, "at least one instance"),
        ({"instances": {"a": 1}}, "at least one instance"),
        ({"instances": [[0.0] * 30], "parameters": {"fields": ["MAE"]}}, "unknown field 'MAE'"),
        ({"instances": [[0.0] * 30], "parameters": {"fields": []}}, "parameters.fields must be a list"),
        ({"instances": [[0.0] * 30], "parameters": {"fields": [["a"]]}}, "unknown field"),
        ({"instances": [[0.0] * 30], "parameters": 3}, "parameters must be an object"),
        (None, "got null"),
    ],
)
def test_a_bad_request_is_a_400_with_the_reason(ask, rows, body, reason):
    got, status = ask(body, {"instances": rows[:1]})
    assert status == [400, 200]
    assert reason in got[0]["message"]
    assert len(got[1]["predictions"]) == 1


def test_extreme_finite_numbers_are_answered_with_finite_json(ask):
    for value in (1e38, -1e38, 3.4028234e38, 1e-40):
        got, status = ask({"instances": [[value] * 30]})
        assert status == [200]
        for name, number in got[0]["predictions"][0].items():
            assert np.isfinite(np.asarray(number, float)).all(), name


def test_a_long_request_takes_several_calls_of_the_model(served, rows, monkeypatch):
    """One call of many rows above the gate would take 20 kB for each."""
    handler, _ = served
    monkeypatch.setitem(type(handler)._predict.__globals__, "CALL_ROWS", 3)
    calls: list[int] = []
    call = handler._call
    monkeypatch.setattr(handler, "_call", lambda part, wanted: calls.append(len(part)) or call(part, wanted))
    many = np.concatenate([np.asarray(rows, np.float32)] * 7)[:7]
    split = handler._predict(many, None)
    assert calls == [3, 3, 1]
    whole = call(many, None)
    for name, values in whole.items():
        np.testing.assert_allclose(split[name], values, rtol=1e-4, atol=1e-5)


def test_no_data_gives_no_answers(served):
    handler, context = served
    assert handler.handle([], context) == []


@pytest.fixture(scope="module", params=[None, "json"], ids=["plain", "envelope"])
def service(served, request):
    """TorchServe's service of the unpacked archive, as its worker process makes it."""
    loader = pytest.importorskip("ts.model_loader", reason="needs TorchServe: pip install torchserve")
    _, context = served
    directory = context.system_properties["model_dir"]
    sys.path.insert(0, directory)
    try:
        made = loader.TsModelLoader().load("m", directory, "handler.py", None, 4, envelope=request.param)
    finally:
        sys.path.remove(directory)
        sys.modules.pop("handler", None)
    return made


def test_under_torchserves_own_loader_context_and_envelope(service, rows, expected):
    from ts.context import RequestProcessor

    bad = {"instances": [rows[0], rows[1][:29]]}
    for bodies, statuses in (
        ([{"instances": rows}], [200]),
        ([bad], [400]),
        ([{"instances": rows}] * 3, [200] * 3),
    ):
        service.context.request_ids = {i: str(i) for i in range(len(bodies))}
        service.context.request_processor = [RequestProcessor({}) for _ in bodies]
        got = service._entry_point([{"body": body} for body in bodies], service.context)
        found = [service.context.get_response_status(i)[0] or 200 for i in range(len(bodies))]
        assert found == statuses
        assert len(got) == len(bodies)
        for answer, status in zip(got, statuses, strict=True):
            answer = orjson.loads(answer)
            if status == 200:
                assert_predictions(answer["predictions"], expected)
            else:
                assert "instances[1]: expected 30 numbers, got 29" in orjson.dumps(answer).decode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"paramters": {"fields": ["encoded"]}}, "unknown member 'paramters'"),
        ({"parameters": {"field": ["encoded"]}}, "parameters: unknown member 'field'"),
        ({"parameters": [1]}, "parameters must be an object"),
    ],
)
def test_a_misspelt_member_is_refused(ask, rows, body, message):
    ((answer,), status) = ask({"instances": rows[:1], **body})
    assert status == [400]
    assert message in answer["message"]


def test_a_misspelt_member_of_an_instance_is_refused(ask, rows):
    ((answer,), _) = ask({"features": rows[0], "field": ["encoded"]}, envelope=True)
    assert "unknown member 'field'" in answer["message"]


def test_instances_of_a_whole_request_may_name_their_own_fields(ask, rows, expected):
    instances = [{"features": rows[0], "fields": ["contributions"]}, rows[1], json.dumps(rows[2])]
    ((answer,), status) = ask({"instances": instances, "parameters": {"fields": ["anomaly_score"]}})
    assert status == [200]
    first, *others = answer["predictions"]
    assert tuple(first) == ("contributions",)
    for i, prediction in enumerate(others, 1):
        assert tuple(prediction) == ("anomaly_score",)
        np.testing.assert_allclose(prediction["anomaly_score"], expected["anomaly_score"][i], rtol=1e-4)


def test_every_answer_says_that_it_is_json(served, rows):
    handler, context = served
    context.expect(2)
    handler.handle([{"body": {"instances": rows[:1]}}, {"body": b"{"}], context)
    assert context.content_type == {0: "application/json", 1: "application/json"}


@pytest.mark.parametrize("largest", [3.4028235677973362e38, -3.4028235677973362e38])
def test_the_largest_double_that_rounds_to_a_finite_float32_is_taken(ask, largest):
    _, status = ask({"instances": [[largest] * len(FEATURES)]})
    assert status == [200]
