"""Templates by gcloud: it reads our metadata, and launches the same job."""

from __future__ import annotations

import json
import subprocess

import pytest

from templates import build, metadata
from tests.cloud.google_server import Google
from tests.cloud.test_launch import BUCKET, IMAGE, run, sent


def gcloud_run(*words: str) -> str:
    done = subprocess.run(["gcloud", "dataflow", "flex-template", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.integration
def test_gcloud_builds_a_template_from_our_metadata(google: Google, gcloud):
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    gcloud_run(
        *("build", f"gs://{BUCKET}/templates/by-gcloud.json", f"--image={IMAGE}", "--sdk-language=PYTHON"),
        f"--metadata-file={metadata.path('streaming')}",
    )
    theirs = json.loads(google.storage.objects[BUCKET, "templates/by-gcloud.json"].data)
    ours = metadata.metadata("streaming")
    named = {p["name"]: p for p in theirs["metadata"]["parameters"]}
    assert list(named) == [p["name"] for p in ours["parameters"]]
    for parameter in ours["parameters"]:
        kept = named[parameter["name"]]
        assert kept["helpText"] == parameter["helpText"]
        assert kept["paramType"] == parameter["paramType"]
        assert kept.get("regexes") == parameter.get("regexes")
    # gcloud 528 drops these four, which is the reason for templates.build; what a later one keeps must agree.
    for field in ("streaming", "supportsAtLeastOnce", "supportsExactlyOnce", "defaultStreamingMode"):
        assert theirs["metadata"].get(field, ours[field]) == ours[field]


@pytest.mark.integration
def test_gcloud_launches_our_template_with_the_same_request_as_launch(
    google: Google, gcloud, tmp_path, capsys
):
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    assert build.main(["--project=local-project", "--region=europe-west1", "--no_image", "--tag=v1"]) == 0
    assert run(google, "streaming", "--skip_preflight", "--job_name=by-hand", "--batch_millis=50") == 0
    ours = sent(google)
    google.requests.clear()
    pairs = ",".join(f"{key}={value}" for key, value in ours["parameters"].items())
    environment = ours["environment"]
    labels = ",".join(f"{key}={value}" for key, value in environment["additionalUserLabels"].items())
    answer = gcloud_run(
        *("run", "by-hand", f"--template-file-gcs-location=gs://{BUCKET}/templates/streaming.json"),
        *("--project=local-project", "--region=europe-west1", "--format=json", f"--parameters={pairs}"),
        f"--service-account-email={environment['serviceAccountEmail']}",
        f"--max-workers={environment['maxWorkers']}",
        f"--worker-machine-type={environment['machineType']}",
        f"--temp-location={environment['tempLocation']}",
        f"--staging-location={environment['stagingLocation']}",
        f"--additional-user-labels={labels}",
        "--enable-streaming-engine",
    )
    assert json.loads(answer)["job"]["name"] == "by-hand"
    theirs = sent(google)
    assert theirs["parameters"] == ours["parameters"]
    assert theirs["containerSpecGcsPath"] == ours["containerSpecGcsPath"]
    # gcloud has no flag for the streaming mode.
    different = {key for key in environment if theirs["environment"].get(key) != environment[key]}
    assert different == {"streamingMode"}


@pytest.mark.integration
def test_gcloud_leaves_the_environment_to_the_template_where_it_has_no_flag(google: Google, gcloud):
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    template = f"--template-file-gcs-location=gs://{BUCKET}/templates/batch.json"
    gcloud_run("run", "by-hand", template, "--region=europe-west1", "--parameters=input=gs://b/x.parquet")
    # An empty message: nothing in it goes before the template's default environment.
    assert not any(sent(google).get("environment", {}).values())
