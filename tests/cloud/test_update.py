"""Updates of a running job: what stays, what changes, and what is said before it is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud import launch, update, versions
from cloud.resources.base import Clients
from cloud.resources.declared import Names
from cloud.update import RunningJob
from pipelines.record import JobRecord
from templates import build, spec
from templates import main as template
from tests.cloud.google_server import Google
from tests.cloud.launcher import command_line

PROJECT = "local-project"
BUCKET = f"{PROJECT}-anomaly"
NAME = "transaction-anomaly-streaming"
IMAGE = f"europe-west1-docker.pkg.dev/{PROJECT}/anomaly/pipelines"
LAUNCHES = rf"/v1b3/projects/{PROJECT}/locations/europe-west1/flexTemplates:launch"
OPTIONS = [
    *("--high_threshold=40.5", "--batch_millis=50", "--no_create_tables"),
    "--subscription=projects/other-project/subscriptions/cards",
]
WORKERS = [
    *("--max_num_workers=8", "--min_num_workers=2", "--machine_type=n2-standard-8", "--no_use_public_ips"),
    *("--streaming_mode=exactly_once", f"--temp_location=gs://{BUCKET}/elsewhere"),
]
BEAMS = [
    "--number_of_worker_harness_threads=3",
    "--profile_cpu",
    '--sdk_harness_log_level_overrides={"transforms": "DEBUG"}',
    "--labels=team=fraud",
    "--experiments=x1",
]


@pytest.fixture
def installation(google: Google, model_dir: Path, monkeypatch) -> Google:
    """A project with its bucket and a model in it; the versions of this machine pass for the image's."""
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    for file in model_dir.iterdir():
        google.storage.put(BUCKET, f"model/{file.name}", file.read_bytes())
    monkeypatch.setattr(versions, "here", versions.of_image)
    return google


def run(google: Google, *argv: str) -> int:
    place = [f"--project={PROJECT}", "--region=europe-west1", f"--dataflow_endpoint={google.url}"]
    return launch.main(["streaming", *place, "--skip_preflight", *argv])


def start(google: Google, *argv: str) -> dict[str, Any]:
    """Has the real DataflowRunner submit a stream; returns the job as it was posted."""
    assert run(google, "--via=direct", f"--image={IMAGE}:v1", "--no_create_tables", *argv) == 0
    return running(google)


def running(google: Google) -> dict[str, Any]:
    job = list(google.jobs.values())[-1]
    job["currentState"] = "JOB_STATE_RUNNING"
    return job


def sent(google: Google) -> dict[str, Any]:
    (body,) = google.bodies("POST", LAUNCHES)
    return body["launchParameter"]


def test_an_update_keeps_the_options_that_it_does_not_name(installation: Google, capsys):
    start(installation, *OPTIONS, *WORKERS, *BEAMS)
    capsys.readouterr()
    # A value that is the name of another option does not stand for it.
    flags = ["--max_num_workers", "9", "--event_time_attribute", "topic"]
    assert run(installation, "--update", "--yes", *flags) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("  --")] == [
        "  --event_time_attribute: none -> topic",
        f"  --image: {IMAGE}:v1 -> that of gs://{BUCKET}/templates/streaming.json",
        "  --max_num_workers: 8 -> 9",
    ]
    assert "The graph has the same steps." in lines
    body = sent(installation)
    assert body["update"] is True
    assert body["parameters"] == {
        "model": f"gs://{BUCKET}/model",
        "subscription": "projects/other-project/subscriptions/cards",
        "alert_topic": f"projects/{PROJECT}/topics/alerts",
        "output_dataset": f"{PROJECT}.anomaly",
        "high_threshold": "40.5",
        "batch_millis": "50",
        "create_tables": "false",
        "event_time_attribute": "topic",
    }
    environment = body["environment"]
    assert environment["maxWorkers"] == 9
    assert environment["machineType"] == "n2-standard-8"
    assert environment["ipConfiguration"] == 2  # WORKER_IP_PRIVATE
    assert environment["streamingMode"] == 1  # STREAMING_MODE_EXACTLY_ONCE
    assert environment["tempLocation"] == f"gs://{BUCKET}/elsewhere"
    assert environment["stagingLocation"] == f"gs://{BUCKET}/staging"
    assert environment["additionalExperiments"] == ["min_num_workers=2", "x1"]
    # No more than was passed: pipeline and runner add options of their own to those of the job.
    assert sorted(environment["additionalPipelineOptions"]) == [
        "number_of_worker_harness_threads=3",
        "profile_cpu",
        'sdk_harness_log_level_overrides={"transforms": "DEBUG"}',
    ]
    assert environment["additionalUserLabels"]["team"] == "fraud"
    assert "sdkContainerImage" not in environment  # the template's own


def test_a_job_that_another_tool_launched_from_the_template_names_its_options_as_well(
    installation: Google, capsys
):
    parameters = {
        "high_threshold": "20",
        "batch_rows": "77",
        "create_tables": "false",
        "alert_topic": "",  # a field of the console's form that stayed empty
        "model": f"gs://{BUCKET}/model",
        "output_dataset": f"{PROJECT}.anomaly",
        "subscription": f"projects/{PROJECT}/subscriptions/transactions-pipeline",
    }
    body = {"jobName": NAME, "parameters": parameters, "environment": {"maxWorkers": 3}}
    container_spec = spec.container_spec("streaming", f"{IMAGE}:v1", Names(PROJECT, "europe-west1"))
    words = command_line(installation, body, container_spec)
    assert template.main([*words, "--region=europe-west1"]) == 0
    job = running(installation)
    assert job["labels"] == {"app": "transaction-anomaly", "pipeline": "streaming"}
    assert run(installation, "--update", "--dry_run") == 0
    assert "alert" not in capsys.readouterr().out  # a launch has an alert topic by default, this job has none
    assert run(installation, "--update", "--reset=alert_topic", "--yes") == 0
    shown = capsys.readouterr().err
    assert f"--alert_topic: none -> projects/{PROJECT}/topics/alerts" in shown
    assert "The graph differs." in shown
    assert "  + Publish alerts\n" in shown
    values = sent(installation)["parameters"]
    assert (values["high_threshold"], values["batch_rows"]) == ("20.0", "77")
    assert sent(installation)["environment"]["maxWorkers"] == 3


def test_a_difference_is_shown_before_anything_is_sent(installation: Google, capsys, monkeypatch):
    start(installation, *OPTIONS, "--number_of_worker_harness_threads=3")
    build.upload(Clients(PROJECT), Names(PROJECT), f"{IMAGE}:v2")
    capsys.readouterr()
    flags = ["--update", "--reset=high_threshold", "--reset=number_of_worker_harness_threads"]
    flags += ["--batch_millis=0", f"--topic=projects/{PROJECT}/topics/transactions"]
    assert run(installation, *flags) == 1
    shown = capsys.readouterr().err
    assert "  --high_threshold: 40.5 -> none\n" in shown
    assert "  --subscription: projects/other-project/subscriptions/cards -> none\n" in shown
    assert "  --number_of_worker_harness_threads: 3 -> none\n" in shown
    assert f"  --image: {IMAGE}:v1 -> {IMAGE}:v2\n" in shown
    assert "The graph differs." in shown
    assert "  - Batch/" in shown
    assert shown.index("The graph differs.") < shown.index(f"Update {NAME}? Nobody is there to answer: pass")
    assert shown.endswith("Nothing was updated.\n")
    assert installation.bodies("POST", LAUNCHES) == []
    assert run(installation, *flags, "--dry_run") == 0
    assert "high_threshold" not in capsys.readouterr().out


def test_a_job_that_does_not_name_its_options_is_not_updated_by_chance(google: Google, capsys):
    google.add_job({"name": NAME, "currentState": "JOB_STATE_RUNNING", "type": "JOB_TYPE_STREAMING"})
    assert run(google, "--update", "--yes") == 1
    assert "expected a job that names its options, got transaction-anomaly-streaming, which an earlier" in (
        capsys.readouterr().err
    )
    assert run(google, "--update", "--yes", "--reset=all") == 0
    assert "The job does not name its steps: the graphs cannot be compared." in capsys.readouterr().err
    assert sent(google)["update"] is True


@pytest.mark.parametrize(
    ("job", "argv", "reason"),
    [
        (None, [], "--update: expected a running job transaction-anomaly-streaming in local-project"),
        ("JOB_STATE_DRAINING", [], "which is DRAINING: wait for its end with `anomaly launch status"),
        (
            "JOB_STATE_RUNNING",
            ["--reset=hihg"],
            "--reset: expected the name of an option, or all, got 'hihg'",
        ),
    ],
)
def test_what_cannot_be_updated_is_said(google: Google, capsys, job, argv, reason):
    if job:
        google.add_job({"name": NAME, "currentState": job, "type": "JOB_TYPE_STREAMING"})
    assert run(google, "--update", "--yes", *argv) in (1, 2)
    assert reason in capsys.readouterr().err
    assert google.bodies("POST", LAUNCHES) == []


def test_a_change_while_the_job_runs_counts(installation: Google):
    start(installation, "--max_num_workers=8", "--min_num_workers=2")["runtimeUpdatableParams"] = {
        "maxNumWorkers": 20,
        "minNumWorkers": 3,
    }
    assert run(installation, "--update", "--yes") == 0
    assert sent(installation)["environment"]["maxWorkers"] == 20
    assert sent(installation)["environment"]["additionalExperiments"] == ["min_num_workers=3"]


def test_a_gpu_keeps_its_image_and_another_gpu_gets_another_machine(installation: Google):
    start(installation, "--gpu=nvidia-l4:1", "--image=docker.io/us/cuda:1")
    assert run(installation, "--update", "--gpu=nvidia-l4:2", "--yes") == 0
    environment = sent(installation)["environment"]
    assert environment["sdkContainerImage"] == "docker.io/us/cuda:1"
    assert environment["machineType"] == "g2-standard-24"


def test_an_image_of_beams_is_no_choice(google: Google):
    """A job that was submitted from a checkout without an image has Beam's, without the package."""
    options = {"job_record": JobRecord({"model": f"gs://{BUCKET}/model"}, ("A",)).text()}
    pool = {"workerHarnessContainerImage": "gcr.io/cloud-dataflow/v1beta3/beam_python3.11_sdk:2.77.0"}
    google.add_job(
        {
            "name": NAME,
            "currentState": "JOB_STATE_RUNNING",
            "environment": {"sdkPipelineOptions": {"options": options}, "workerPools": [pool]},
        }
    )
    flags = [f"--output_dataset={PROJECT}.anomaly", "--topic=projects/my-project/topics/cards"]
    assert run(google, "--update", "--yes", *flags) == 0
    assert "sdkContainerImage" not in sent(google)["environment"]


def test_a_model_that_cannot_be_read_leaves_the_graphs_alone(installation: Google, capsys):
    start(installation)
    for name in installation.storage.names(BUCKET, "model/"):
        del installation.storage.objects[BUCKET, name]
    assert run(installation, "--update", "--yes") == 0
    assert "The graphs cannot be compared: --model: " in capsys.readouterr().err


def test_of_steps_that_go_together_the_outermost_is_named():
    job = RunningJob("1", NAME, {}, ("A", "A/x", "A/x/y", "B", "B/x", "C"), {}, {})
    gone, added = update.step_changes(job, ["B", "D", "D/x", "E"], {"C": "E"})
    assert (gone, added) == (["A", "B/x"], ["D"])
