from __future__ import annotations

import dataclasses
import pickle

import pytest

from common.command import Parser
from common.options import OptionError, add_options, read_options
from features.ranges import FeatureRanges
from model import artifact
from pipelines.options import DetectionOptions, StreamDetectionOptions
from pipelines.scorers import ScorerOptions, model_handler
from tests.model.serving.artifacts import build_artifact
from transforms.forms import Encoding
from transforms.remote import TorchServeHandler, VertexHandler
from transforms.score import PytorchHandler

ENDPOINT = "projects/my-project/locations/us-central1/endpoints/123"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    manifest = artifact.verify(build_artifact(tmp_path_factory.mktemp("model")).uri)
    return dataclasses.replace(manifest, thresholds={"medium": 10.0, "high": 20.0})


DETECTION = DetectionOptions(model="out/model")


def parsed(*flags: str) -> ScorerOptions:
    parser = Parser()
    add_options(parser, ScorerOptions)
    return read_options(ScorerOptions, parser.parse_args(flags))


def test_the_default_is_the_model_in_the_worker(manifest):
    handler = model_handler(parsed(), DETECTION, manifest)
    encoding = Encoding(manifest.spec, manifest.learnt)
    assert handler == PytorchHandler("out/model", "compact", {}, manifest.digest, 0, encoding)


def test_a_model_that_may_be_replaced_is_held_to_its_features_and_the_thresholds_of_the_options(manifest):
    detection = StreamDetectionOptions(model="out/model", model_refresh_seconds=60, medium_threshold=5.0)
    handler = model_handler(parsed(), detection, manifest)
    encoding = Encoding(manifest.spec, manifest.learnt)
    assert handler == PytorchHandler("out/model", "compact", {"medium": 5.0}, "", 60, encoding)


def test_vertex(manifest):
    flags = ["--scorer=vertex", f"--vertex_endpoint={ENDPOINT}", "--vertex_psc_address=10.0.0.9"]
    detection = DetectionOptions(model="out/model", output_detail="full")
    handler = model_handler(parsed(*flags, "--remote_rows=50"), detection, manifest)
    assert isinstance(handler, VertexHandler)
    assert (handler.endpoint, handler.psc_address, handler.detail) == (ENDPOINT, "10.0.0.9", "full")
    assert handler.limits.rows == 50
    assert handler.thresholds == {"medium": 10.0, "high": 20.0}
    assert handler.model_version == manifest.model_version


def test_torchserve(manifest):
    flags = ["--scorer=torchserve", "--torchserve_url=http://10.0.0.5:8080", "--torchserve_model=m"]
    flags += ["--torchserve_model_version=2", "--torchserve_key_file=gs://b/key_file.json"]
    limits = [
        "--remote_bytes=9000",
        "--remote_in_flight=9",
        "--remote_attempts=3",
        "--remote_timeout_seconds=5",
    ]
    handler = model_handler(parsed(*flags, *limits), DETECTION, manifest)
    assert isinstance(handler, TorchServeHandler)
    assert (handler.url, handler.name, handler.version) == ("http://10.0.0.5:8080", "m", "2")
    assert handler.key_file == "gs://b/key_file.json"
    limits = handler.limits
    assert (limits.bytes, limits.in_flight, limits.timeout, limits.patience.tries) == (9000, 9, 5.0, 3)


def test_a_handler_travels_to_the_workers_as_plain_data(manifest):
    handler = model_handler(parsed("--scorer=vertex", f"--vertex_endpoint={ENDPOINT}"), DETECTION, manifest)
    assert pickle.loads(pickle.dumps(handler)) == handler


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--scorer=vertex"], "--scorer=vertex needs --vertex_endpoint"),
        (["--scorer=torchserve"], "--scorer=torchserve needs --torchserve_url"),
        ([f"--vertex_endpoint={ENDPOINT}"], "--vertex_endpoint goes with --scorer=vertex"),
        (["--torchserve_model=m"], "--torchserve_model goes with --scorer=torchserve"),
        (
            ["--scorer=vertex", "--vertex_endpoint=123"],
            "expected projects/PROJECT/locations/REGION/endpoints/ENDPOINT, got '123'",
        ),
        (
            ["--scorer=torchserve", "--torchserve_url=10.0.0.5:8080"],
            "--torchserve_url: expected a URL such as http://127.0.0.1:8080, got '10.0.0.5:8080'",
        ),
        (
            ["--scorer=vertex", f"--vertex_endpoint={ENDPOINT}", "--vertex_api_endpoint=http://example.com"],
            "clear text",
        ),
        (["--remote_rows=0"], "--remote_rows: expected a whole number of at least 1, got '0'"),
        (["--remote_bytes=100"], "--remote_bytes: expected a whole number of at least 4096, got '100'"),
        (["--remote_in_flight=0"], "--remote_in_flight: expected a whole number of at least 1, got '0'"),
        (["--remote_attempts=0"], "--remote_attempts: expected a whole number of at least 1, got '0'"),
        (["--remote_timeout_seconds=0"], "--remote_timeout_seconds: expected more than 0, got 0.0"),
        (["--scorer=onnx"], "invalid choice: 'onnx'"),
    ],
)
def test_a_wrong_option_ends_the_program_with_its_name(flags, reason, capsys):
    with pytest.raises((SystemExit, OptionError)) as refused:
        parsed(*flags)
    assert reason in f"{refused.value} {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("url", "key_file", "warned"),
    [
        ("http://10.0.0.5:8080", "gs://b/key_file.json", True),
        ("http://10.0.0.5:8080", None, False),
        ("https://10.0.0.5:8080", "gs://b/key_file.json", False),
        ("http://127.0.0.1:8080", "gs://b/key_file.json", False),
    ],
)
def test_a_key_in_clear_text_is_warned_of(url, key_file, warned, caplog):
    flags = ["--scorer=torchserve", f"--torchserve_url={url}"]
    parsed(*flags, *([f"--torchserve_key_file={key_file}"] if key_file else [])).warn()
    assert (f"--torchserve_url={url}: the key of --torchserve_key_file" in caplog.text) == warned


@pytest.mark.parametrize(
    "flags",
    [
        ["--scorer=vertex", f"--vertex_endpoint={ENDPOINT}"],
        ["--scorer=torchserve", "--torchserve_url=http://10.0.0.5:8080"],
    ],
)
def test_a_remote_scorer_knows_the_ranges_of_the_model(flags, manifest):
    manifest = dataclasses.replace(manifest, feature_quantiles={"Amount": tuple(range(21))})
    assert model_handler(parsed(*flags), DETECTION, manifest).ranges == manifest.ranges != FeatureRanges()
