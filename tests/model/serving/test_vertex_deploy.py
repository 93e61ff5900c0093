"""Endpoints of Vertex AI: deploy, split traffic, undeploy, by what the real SDK sends over the wire."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from google.cloud.aiplatform_v1 import AcceleratorType

from model.serving.vertex.__main__ import UNDEPLOY
from tests.model.serving.artifacts import VERSION
from tests.model.serving.vertex_cases import NEWER, PARENT, PREBUILT, deploy

pytest_plugins = ("tests.model.serving.fixtures", "tests.model.serving.vertex_fixtures")
pytestmark = pytest.mark.integration


def changed(vertex):
    """Method and path of what was sent to change something, the parent left out."""
    return [(method, path.removeprefix(PARENT)) for method, path, _ in vertex.calls]


def test_deploy_sends_every_option_and_shows_the_cost(uploaded, run, vertex):
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


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--machine_type", "n1-standard-4"], "--machine_type n1-standard-2, not n1-standard-4"),
        (["--min_replicas", "0"], "--min_replicas 1, not 0"),
        (["--accelerator_type", "NVIDIA_TESLA_T4", "--accelerators", "1"], "--accelerators 0, not 1"),
        (["--service_account", "a@p.iam.gserviceaccount.com"], "--service_account not set, not a@p"),
    ],
)
def test_other_machines_for_a_deployed_version_are_not_passed_over(uploaded, run, vertex, flags, text):
    assert deploy(run, VERSION, "--cpu_target", "60")[0] == 0
    sent = len(vertex.calls)
    code, _, err = deploy(run, VERSION, *flags)
    assert code == 1
    assert text in err
    assert "undeploy it first" in err
    assert len(vertex.calls) == sent


def resources(vertex) -> dict:
    ((deployed,),) = (endpoint["deployedModels"] for endpoint in vertex.endpoints.values())
    return deployed["dedicatedResources"]


def test_replicas_and_targets_of_a_deployed_version_are_changed_in_place(uploaded, run, vertex):
    assert deploy(run, VERSION, "--max_replicas", "5", "--cpu_target", "60")[0] == 0
    code, out, err = deploy(
        run, VERSION, "--min_replicas", "2", "--cpu_target", "50", "--request_target", "9"
    )
    assert code == 0, err
    assert "has --min_replicas 2, --cpu_target 50, --request_target 9 now" in out
    (endpoint,) = vertex.endpoints.values()
    method, path, body = vertex.calls[-1]
    assert (method, path) == ("POST", f"/v1/{endpoint['name']}:mutateDeployedModel")
    assert (
        body["updateMask"] == "dedicatedResources.autoscalingMetricSpecs,dedicatedResources.minReplicaCount"
    )
    (deployed,) = endpoint["deployedModels"]
    assert body["deployedModel"]["id"] == deployed["id"]
    targets = {
        spec["metricName"].rsplit("/", 2)[-1]: spec["target"]
        for spec in resources(vertex)["autoscalingMetricSpecs"]
    }
    assert targets == {"utilization": 50, "request_count": 9}
    # What is not passed stays as it is.
    assert (resources(vertex)["minReplicaCount"], resources(vertex)["maxReplicaCount"]) == (2, 5)
    assert resources(vertex)["machineSpec"] == {"machineType": "n1-standard-2"}
    sent = len(vertex.calls)
    assert "already" in deploy(run, VERSION, "--min_replicas", "2", "--cpu_target", "50")[1]
    code, out, _ = deploy(run, VERSION, "--max_replicas", "7", "--dry_run")
    assert (code, "dedicated_resources.max_replica_count" in out) == (0, True)
    code, _, err = deploy(run, VERSION, "--min_replicas", "6")
    assert (code, "expected the first not above the second, got 6 and 5" in err) == (1, True)
    assert len(vertex.calls) == sent


def test_replicas_scale_to_zero_by_the_preview_of_the_api(uploaded, run, vertex):
    code, out, err = deploy(run, VERSION, "--min_replicas", "0", "--max_replicas", "2")
    assert code == 0, err
    assert "0 to 2 replica(s) of n1-standard-2: nothing while none runs" in out
    (endpoint,) = vertex.endpoints.values()
    method, path, body = vertex.calls[-1]
    assert (method, path) == ("POST", f"/v1beta1/{endpoint['name']}:deployModel")
    wanted = body["deployedModel"]["dedicatedResources"]
    assert (wanted.get("minReplicaCount", 0), wanted["maxReplicaCount"], wanted["initialReplicaCount"]) == (
        0,
        2,
        1,
    )
    assert body["deployedModel"]["displayName"] == VERSION
    (row,) = json.loads(run("list", "--format", "json")[1])
    assert (row["min_replicas"], row["max_replicas"], row["dollars_an_hour"]) == (0, 2, 0.0)
    assert "already" in deploy(run, VERSION, "--min_replicas", "0")[1]
    code, _, err = deploy(run, VERSION, "--min_replicas", "1")
    assert (code, "--min_replicas 0, not 1" in err) == (1, True)
    code, _, err = run(
        "deploy", "--name", "m", "--endpoint", "x", "--psc_project", "q", "--min_replicas", "0"
    )
    assert (code, "on a psc endpoint, which never scales to 0" in err) == (1, True)


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

    rows = json.loads(run("list", "--format", "json")[1])
    assert [(row["version"], row["traffic"], row["deployed_id"]) for row in rows] == [
        (VERSION, 90, ids[VERSION]),
        (NEWER, 10, ids[NEWER]),
    ]
    assert {(row["endpoint"], row["kind"], row["dollars_an_hour"]) for row in rows} == {
        ("e", "shared", 0.1095)
    }

    code, _, err = run("delete", "--endpoint", "e", "--name", "m")
    assert code == 0, err
    assert (vertex.endpoints, vertex.models, vertex.storage.names("b")) == ({}, {}, [])
    code, out, _ = run("delete", "--endpoint", "e", "--name", "m")
    assert code == 0
    assert out.count("was not there") == 2


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
def test_the_documented_line_of_gcloud_undeploys_a_version(uploaded, run, vertex, tmp_path):
    deploy(run, VERSION)
    deploy(run, NEWER)
    rows = {row["version"]: row for row in json.loads(run("list", "--format", "json")[1])}
    _, line, _ = UNDEPLOY.split("\n", 2)
    ids = {"ENDPOINT": rows[NEWER]["resource"], "DEPLOYED_ID": rows[NEWER]["deployed_id"], "=P": "=p"}
    for name, value in ids.items():
        line = line.replace(name, value)
    environment = {
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": f"{vertex.url}/",
    }
    done = subprocess.run(
        line.split(), env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [row["version"] for row in json.loads(run("list", "--format", "json")[1])] == [VERSION]


def test_an_endpoint_without_models_has_a_row(uploaded, run, vertex):
    deploy(run, VERSION)
    (endpoint,) = vertex.endpoints.values()
    endpoint["deployedModels"], endpoint["trafficSplit"] = [], {}
    (row,) = json.loads(run("list", "--format", "json")[1])
    assert (row["endpoint"], row["version"], row["dollars_an_hour"]) == ("e", None, 0.0)
    assert run("delete", "--endpoint", "e")[0] == 0
    assert run("list")[1] == "No endpoints in this project and region.\n"


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
        # The flags are for a new endpoint; without them, one that is there may be of any kind.
        code, out, err = run("deploy", "--name", "m", "--endpoint", name)
        assert code == 0, err
        assert "already" in out
        other = ["--dedicated"] if name != "dedicated" else ["--network", network]
        code, _, err = run("deploy", "--name", "m", "--endpoint", name, *other)
        assert code == 1
        assert f"exists as a {name} endpoint, not {'peered' if name == 'dedicated' else 'dedicated'}" in err
    rows = json.loads(run("list", "--format", "json")[1])
    assert sorted(row["kind"] for row in rows) == ["dedicated", "peered", "psc"]
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
        ["delete", "--endpoint", "e", "--name", "m"],
    ):
        code, out, err = run(*command, "--dry_run")
        assert code == 0, err
        shown.append(out)
    assert vertex.calls == []
    assert vertex.storage.names("b") == before
    assert f'"serving_container_image_uri": "{PREBUILT}"' in shown[0]
    assert '"gs://b/other/pytorch_autoencoder/20260202.080000/model.mar: upload"' in shown[0]
    for name in (*newer_artifact.manifest.files, "manifest.json"):
        assert f'"gs://b/other/pytorch_autoencoder/20260202.080000/{name}"' in shown[0]
    assert '"dedicated_endpoint_enabled": true' in shown[1]
    assert "about $0.11 an hour" in shown[1]
    assert '"deployed_model_display_name": "20260202.080000"' in shown[1]
    assert '"Endpoint.update"' in shown[3]
    assert shown[4].count('"call"') == 5  # undeploy, endpoint, model, the files of two versions
    for name in before:
        assert f'"gs://b/{name}"' in shown[4]
