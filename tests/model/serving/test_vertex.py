"""The Vertex AI commands: the real SDK against a server on this machine, by what went over the wire."""

from __future__ import annotations

import json

import numpy as np
import orjson
import pytest
import requests
from google.cloud.aiplatform_v1 import AcceleratorType

from model.artifact import read, write
from model.serving.predictor import Predictor
from model.serving.request import ANSWER_FIELDS
from model.serving.vertex import prices
from model.serving.vertex.__main__ import main
from tests.model.serving.artifacts import VERSION, build_artifact, transactions
from tests.model.serving.vertex_server import vertex_server
from tests.pipelines.storage_server import Refusal

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration

PREBUILT = "us-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest"
CUSTOM = "us-central1-docker.pkg.dev/p/anomaly/anomaly-serving:1"
PARENT = "/v1/projects/p/locations/us-central1"
NEWER = "20260202.080000"


@pytest.fixture
def vertex(monkeypatch):
    with vertex_server() as server:
        server.storage.buckets["b"] = {"name": "b"}
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture
def run(vertex, capsys):
    """Runs a command; gives exit code, standard output and standard error."""

    def command(*arguments: str):
        name, *rest = arguments
        code = main([name, "--project", "p", "--api_endpoint", vertex.url, *rest])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture(scope="session")
def newer_artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("newer"), NEWER, seed=8)


@pytest.fixture
def uploaded(run, vertex, served_artifact, newer_artifact):
    """Two versions of the custom container's model are in the registry; calls are counted from here."""
    for found in (served_artifact, newer_artifact):
        code, _, err = run(
            "upload", "--model", found.uri, "--image", CUSTOM, "--staging", "gs://b/m", "--name", "m"
        )
        assert code == 0, err
    vertex.calls.clear()
    return "m"


def deploy(run, version, *flags):
    return run("deploy", "--name", "m", "--version", version, "--endpoint", "e", *flags)


def changed(vertex):
    """Method and path of what was sent to change something, the parent left out."""
    return [(method, path.removeprefix(PARENT)) for method, path, _ in vertex.calls]


def test_a_local_artifact_is_staged_for_the_prebuilt_container_and_registered(run, vertex, served_artifact):
    vertex.slow = True
    flags = [
        "--model",
        served_artifact.uri,
        "--image",
        "prebuilt-cpu",
        "--staging",
        "gs://b/m",
        "--label",
        "a=b",
    ]
    code, out, err = run("upload", *flags)
    assert code == 0, err
    ((method, path, body),) = vertex.calls
    assert (method, path) == ("POST", f"{PARENT}/models:upload")
    uri = f"gs://b/m/pytorch_autoencoder/{VERSION}"
    assert body == {
        "model": {
            "displayName": "pytorch_autoencoder-prebuilt",
            "containerSpec": {"imageUri": PREBUILT},
            "artifactUri": uri,
            "versionAliases": ["v-20260101-120000", "default"],
            "versionDescription": VERSION,
            "labels": {
                "a": "b",
                "managed-by": "beam-transaction-anomaly",
                "model-version": "v-20260101-120000",
                "staged": "all",
            },
        }
    }
    assert len(vertex.polls) == 1
    assert vertex.polls[0].startswith("/ui/projects/p/locations/us-central1/operations/")
    assert (
        vertex.storage.objects["b", f"m/pytorch_autoencoder/{VERSION}/model.mar"].data
        == (served_artifact.local_dir / "pytorch_autoencoder.mar").read_bytes()
    )
    assert read(uri).manifest.model_version == VERSION
    assert f"pytorch_autoencoder-prebuilt {VERSION}: projects/p/" in out

    code, again, _ = run("upload", *flags)
    assert (code, again, len(vertex.calls)) == (0, out, 1)


def test_an_artifact_on_cloud_storage_is_used_where_it_is(run, vertex, served_artifact):
    files = [served_artifact.local_dir / name for name in served_artifact.manifest.files]
    write("gs://b/trained", served_artifact.manifest, files)
    code, _, err = run("upload", "--model", "gs://b/trained", "--image", CUSTOM)
    assert code == 0, err
    spec = vertex.calls[0][2]["model"]
    assert spec["artifactUri"] == "gs://b/trained"
    assert spec["displayName"] == "pytorch_autoencoder-custom"
    assert spec["containerSpec"] == {
        "imageUri": CUSTOM,
        "predictRoute": "/predict",
        "healthRoute": "/health",
        "ports": [{"containerPort": 8080}],
    }
    code, _, err = run("upload", "--model", "gs://b/trained", "--image", "prebuilt-gpu")
    assert code == 0, err
    assert vertex.calls[1][2]["model"]["containerSpec"]["imageUri"] == PREBUILT.replace("cpu", "gpu")
    assert "trained/model.mar" in vertex.storage.names("b")
    # What upload put there goes; the artifact, which it did not, stays.
    assert run("delete", "--name", "pytorch_autoencoder-prebuilt")[0] == 0
    assert run("delete", "--name", "pytorch_autoencoder-custom")[0] == 0
    assert vertex.storage.names("b") == [
        "trained/final_model_traced.pt",
        "trained/manifest.json",
        "trained/pytorch_autoencoder.mar",
    ]


def test_another_version_goes_under_the_same_model(uploaded, vertex):
    ((name, versions),) = vertex.models.items()
    assert [version["versionDescription"] for version in versions] == [VERSION, NEWER]
    assert versions[-1]["name"] == name
    assert "default" in versions[-1]["versionAliases"]


def test_the_same_version_with_another_image_is_refused(uploaded, run, vertex, served_artifact):
    other = CUSTOM.replace(":1", ":2")
    flags = ["--model", served_artifact.uri, "--image", other, "--name", "m", "--staging", "gs://b/m"]
    code, _, err = run("upload", *flags)
    assert code == 1
    assert f"m has version {VERSION} already, with image {CUSTOM}" in err
    assert vertex.calls == []


def test_deploy_sends_every_setting_and_tells_the_cost(uploaded, run, vertex):
    flags = ["--machine_type", "n1-standard-4", "--min_replicas", "2", "--max_replicas", "5"]
    flags += ["--cpu_target", "55", "--request_target", "6000", "--duty_cycle_target", "70"]
    flags += ["--accelerator_type", "NVIDIA_TESLA_T4", "--accelerators", "1"]
    flags += ["--service_account", "serving@p.iam.gserviceaccount.com", "--label", "team=fraud"]
    code, out, err = deploy(run, VERSION, *flags)
    assert code == 0, err
    assert changed(vertex)[0] == ("POST", "/endpoints")
    assert vertex.calls[0][2] == {
        "displayName": "e",
        "labels": {"team": "fraud", "managed-by": "beam-transaction-anomaly"},
    }
    ((model, _),) = vertex.models.items()
    assert vertex.calls[1][1].endswith(":deployModel")
    metric = "aiplatform.googleapis.com/prediction/online"
    assert vertex.calls[1][2] == {
        "deployedModel": {
            "model": f"{model}@1",
            "displayName": VERSION,
            "serviceAccount": "serving@p.iam.gserviceaccount.com",
            "dedicatedResources": {
                "machineSpec": {
                    "machineType": "n1-standard-4",
                    # The REST transport sends enums as numbers.
                    "acceleratorType": AcceleratorType.NVIDIA_TESLA_T4.value,
                    "acceleratorCount": 1,
                },
                "minReplicaCount": 2,
                "maxReplicaCount": 5,
                "autoscalingMetricSpecs": [
                    {"metricName": f"{metric}/cpu/utilization", "target": 55},
                    {"metricName": f"{metric}/accelerator/duty_cycle", "target": 70},
                    {"metricName": f"{metric}/request_count", "target": 6000},
                ],
            },
        },
        "trafficSplit": {"0": 100},
    }
    assert "2 replica(s) of n1-standard-4 with 1 NVIDIA_TESLA_T4: about $1.24 an hour" in out
    assert "up to $3.11 an hour at 5 replicas" in out
    assert "idle or not" in out


def test_deploying_again_changes_nothing(uploaded, run, vertex):
    assert deploy(run, VERSION)[0] == 0
    sent = len(vertex.calls)
    code, out, _ = deploy(run, VERSION)
    assert (code, len(vertex.calls)) == (0, sent)
    assert "already" in out


def test_two_versions_share_the_traffic_and_are_taken_down(uploaded, run, vertex):
    assert deploy(run, VERSION)[0] == 0
    assert deploy(run, NEWER)[0] == 0
    (endpoint,) = vertex.endpoints.values()
    ids = {model["displayName"]: model["id"] for model in endpoint["deployedModels"]}
    assert endpoint["trafficSplit"] == {ids[VERSION]: 100, ids[NEWER]: 0}

    split = ["--split", f"{VERSION}=90", "--split", f"{NEWER}=10"]
    assert run("traffic", "--endpoint", "e", *split)[0] == 0
    method, path, body = vertex.calls[-1]
    assert (method, path) == ("PATCH", f"/v1/{endpoint['name']}")
    assert body["trafficSplit"] == {ids[VERSION]: 90, ids[NEWER]: 10}
    sent = len(vertex.calls)
    assert "was split so already" in run("traffic", "--endpoint", "e", *split)[1]
    assert len(vertex.calls) == sent

    code, out, _ = run("status", "--format", "json")
    (entry,) = json.loads(out)
    assert [(model["version"], model["traffic"]) for model in entry["models"]] == [(VERSION, 90), (NEWER, 10)]
    assert "n1-standard-2: about $0.11 an hour" in run("status")[1]

    assert run("undeploy", "--endpoint", "e", "--version", NEWER)[0] == 0
    assert endpoint["trafficSplit"] == {ids[VERSION]: 100}
    assert "nothing" in run("undeploy", "--endpoint", "e", "--version", NEWER)[1]
    assert deploy(run, NEWER, "--traffic", "30")[0] == 0
    code, _, err = run("delete", "--endpoint", "e", "--name", "m")
    assert code == 0, err
    assert (vertex.endpoints, vertex.models, vertex.storage.names("b")) == ({}, {}, [])
    code, out, _ = run("delete", "--endpoint", "e", "--name", "m")
    assert code == 0
    assert out.count("was not there") == 2


def test_a_version_with_all_the_traffic_is_not_undeployed_beside_others(uploaded, run, vertex):
    deploy(run, VERSION)
    deploy(run, NEWER)
    code, _, err = run("undeploy", "--endpoint", "e", "--version", VERSION)
    assert code == 1
    assert "move it first: traffic --split" in err
    assert run("undeploy", "--endpoint", "e", "--all")[0] == 0
    (endpoint,) = vertex.endpoints.values()
    assert endpoint["deployedModels"] == []


def test_endpoints_of_every_kind(uploaded, run, vertex):
    network = "projects/1/global/networks/n"
    kinds = {
        "dedicated": (["--dedicated"], {"dedicatedEndpointEnabled": True}),
        "peered": (["--network", network], {"network": network}),
        "psc": (
            ["--psc_project", "q", "--psc_project", "r"],
            {
                "privateServiceConnectConfig": {
                    "enablePrivateServiceConnect": True,
                    "projectAllowlist": ["q", "r"],
                }
            },
        ),
    }
    for name, (flags, expected) in kinds.items():
        code, _, err = run("deploy", "--name", "m", "--endpoint", name, *flags)
        assert code == 0, err
        made = next(
            body
            for _, path, body in vertex.calls
            if path.endswith("/endpoints") and body["displayName"] == name
        )
        assert {key: made[key] for key in expected} == expected
        code, _, err = run("deploy", "--name", "m", "--endpoint", name)
        assert code == 1
        assert f"is there as a {name} endpoint, not shared" in err
    entries = json.loads(run("status", "--format", "json")[1])
    assert sorted(entry["kind"] for entry in entries) == ["dedicated", "peered", "psc"]
    for name in kinds:
        assert run("delete", "--endpoint", name)[0] == 0
    assert vertex.endpoints == {}


def test_dry_runs_show_and_send_nothing(uploaded, run, vertex, newer_artifact):
    deploy(run, VERSION)
    deploy(run, NEWER)
    vertex.calls.clear()
    before = vertex.storage.names("b")
    shown = []
    for command in (
        ["upload", "--model", newer_artifact.uri, "--image", "prebuilt-cpu", "--staging", "gs://b/other"],
        ["deploy", "--name", "m", "--endpoint", "another", "--dedicated"],
        ["deploy", "--name", "m", "--endpoint", "private", "--psc_project", "q"],
        ["traffic", "--endpoint", "e", "--split", f"{NEWER}=100"],
        ["undeploy", "--endpoint", "e", "--version", NEWER],
        ["delete", "--endpoint", "e", "--name", "m"],
    ):
        code, out, err = run(*command, "--dry-run")
        assert code == 0, err
        shown.append(out)
    assert vertex.calls == []
    assert vertex.storage.names("b") == before
    assert f'"serving_container_image_uri": "{PREBUILT}"' in shown[0]
    assert '"gs://b/other/pytorch_autoencoder/20260202.080000/model.mar: upload"' in shown[0]
    assert '"dedicated_endpoint_enabled": true' in shown[1]
    assert "about $0.11 an hour" in shown[1]
    assert '"deployed_model_display_name": "20260202.080000"' in shown[1]
    assert '"Endpoint.update"' in shown[3]
    assert '"Endpoint.undeploy"' in shown[4]
    assert shown[5].count('"call"') == 5  # undeploy, endpoint, model, the files of two versions


@pytest.fixture
def forwarding(uploaded, run, vertex):
    """Two versions are deployed; predictions go to the server that a test names by its URL and headers."""
    deploy(run, VERSION)

    def to(url, headers=None):
        def send(deployed, body, _):
            return requests.post(
                url, body, headers={"Content-Type": "application/json", **(headers or {})}, timeout=60
            )

        vertex.forward = send

    return to


def predicted(run, tmp_path, features):
    request = tmp_path / "request.json"
    body = {"instances": features, "parameters": {"fields": list(ANSWER_FIELDS)}}
    request.write_bytes(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))
    code, out, err = run("predict", "--endpoint", "e", "--input", str(request))
    assert code == 0, err
    return json.loads(out)


def check_predictions(answer, artifact, features):
    expected = Predictor(artifact).outputs(features, ANSWER_FIELDS)
    for name, values in expected.items():
        found = np.array([row[name] for row in answer["predictions"]], np.float32)
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_predict_by_an_endpoint_in_front_of_the_custom_container(
    forwarding, run, vertex, custom_container, served_artifact, tmp_path
):
    forwarding(f"{custom_container.url}/v1/endpoints/1/deployedModels/2:predict")
    features = transactions(7)
    answer = predicted(run, tmp_path, features)
    check_predictions(answer, served_artifact, features)
    (endpoint,) = vertex.endpoints.values()
    assert answer["deployed_model"] == endpoint["deployedModels"][0]["id"]
    assert answer["metadata"] == {"model_version": VERSION}


def test_predict_by_an_endpoint_in_front_of_torchserve(
    forwarding, run, torchserve, served_artifact, tmp_path
):
    server = torchserve.server
    forwarding(f"{server.inference}/predictions/pytorch_autoencoder", server.headers("inference"))
    features = transactions(7)
    check_predictions(predicted(run, tmp_path, features), served_artifact, features)


def test_what_the_server_refuses_is_told(forwarding, run, custom_container, tmp_path):
    forwarding(f"{custom_container.url}/predict")
    request = tmp_path / "request.json"
    request.write_text('{"instances": [[1, 2]]}')
    code, _, err = run("predict", "--endpoint", "e", "--input", str(request))
    assert code == 1
    assert "instances[0]: expected 30 features, got 2" in err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["deploy", "--name", "nobody", "--endpoint", "e"], "--name nobody: no such model"),
        (
            ["deploy", "--name", "m", "--endpoint", "e", "--version", "1.0"],
            f"m has no version 1.0; it has {VERSION}",
        ),
        (["deploy", "--name", "m", "--endpoint", "e", "--traffic", "50"], "takes all of its traffic"),
        (["deploy", "--name", "m", "--endpoint", "e", "--min_replicas", "3"], "give 1 <= min <= max"),
        (["deploy", "--name", "m", "--endpoint", "e", "--min_replicas", "0"], "give 1 <= min <= max"),
        (["deploy", "--name", "m", "--endpoint", "e", "--accelerators", "1"], "go together"),
        (["deploy", "--name", "m", "--endpoint", "e", "--cpu_target", "101"], "--cpu_target 101"),
        (
            ["deploy", "--name", "m", "--endpoint", "e", "--duty_cycle_target", "50"],
            "needs --accelerator_type",
        ),
        (["deploy", "--name", "m", "--endpoint", "e", "--label", "Team=x"], "--label Team=x: give KEY=VALUE"),
        (
            ["deploy", "--name", "m", "--endpoint", "e", "--dedicated", "--network", "n"],
            "give one of --dedicated",
        ),
        (["traffic", "--endpoint", "e", "--split", "v1=100"], "--endpoint e: no such endpoint"),
        (["traffic", "--endpoint", "e", "--split", "v1:100"], "--split v1:100: give VERSION=PERCENT"),
        (["undeploy", "--endpoint", "e", "--all"], "--endpoint e: no such endpoint"),
        (["delete"], "give --endpoint, --name, or both"),
        (["upload", "--model", "ARTIFACT", "--image", CUSTOM], "give --staging gs://"),
        (
            ["upload", "--model", "ARTIFACT", "--image", "prebuilt-tpu"],
            "--image prebuilt-tpu: give prebuilt-cpu",
        ),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_sent(
    uploaded, run, vertex, served_artifact, command, words
):
    code, _, err = run(*(served_artifact.uri if word == "ARTIFACT" else word for word in command))
    assert code == 1
    assert words in err
    assert vertex.calls == []


def test_a_split_must_name_deployed_versions_and_add_up(uploaded, run, vertex):
    deploy(run, VERSION)
    sent = len(vertex.calls)
    assert "nobody is not deployed there" in run("traffic", "--endpoint", "e", "--split", "nobody=100")[2]
    assert "must add up to 100, not 99" in run("traffic", "--endpoint", "e", "--split", f"{VERSION}=99")[2]
    assert len(vertex.calls) == sent


def test_what_google_refuses_is_told(run, vertex):
    vertex.refusal = Refusal(403, "PERMISSION_DENIED", "aiplatform.endpoints.list denied on p")
    code, _, err = run("status")
    assert code == 1
    assert "Google Cloud answers: 403" in err
    assert "aiplatform.endpoints.list denied on p" in err


def test_without_a_project_or_https_nothing_is_asked(capsys, monkeypatch):
    assert main(["status", "--project", "p", "--api_endpoint", "http://10.1.2.3"]) == 1
    assert "use https" in capsys.readouterr().err
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    assert main(["status"]) == 1
    assert "give --project" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("machine", "accelerator", "n", "price"),
    [
        ("n1-standard-2", None, 0, 0.1095),
        ("n1-standard-8", None, 0, 0.438),
        ("e2-standard-4", None, 0, 0.1541128),
        ("n1-standard-4", "NVIDIA_TESLA_T4", 2, 1.024),
        ("a3-highgpu-8g", None, 0, None),
        ("n1-standard-4", "NVIDIA_L4", 1, None),
        ("nonsense", None, 0, None),
    ],
)
def test_prices(machine, accelerator, n, price):
    found = prices.hourly_price(machine, accelerator, n)
    assert found == (None if price is None else pytest.approx(price))


def test_an_unknown_price_still_reminds():
    text = prices.describe("a3-highgpu-8g", 1, 2)
    assert "price not known here" in text
    assert "idle or not" in text
