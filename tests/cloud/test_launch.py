"""Launching by template and directly, following, draining, cancelling: against a local Dataflow."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
from google.cloud.dataflow_v1beta3.types import LaunchFlexTemplateParameter
from google.protobuf import json_format

from cloud import flex, launch, versions
from cloud.jobs import JobError, Jobs, label_value
from cloud.machines import machine_for
from common.options import OptionError
from pipelines import streaming
from templates import build, metadata
from tests.cloud.google_server import Google

PROJECT = ["--project=local-project", "--region=europe-west1"]
LAUNCHES = r"/v1b3/projects/local-project/locations/europe-west1/flexTemplates:launch"
BUCKET = "local-project-anomaly"
IMAGE = "europe-west1-docker.pkg.dev/local-project/anomaly/pipelines:v1"


def run(google: Google, action: str, *argv: str) -> int:
    return launch.main([action, *PROJECT, f"--dataflow_endpoint={google.url}", *argv])


def status(argv: list[str]) -> int:
    """The exit status, of an error of argparse too."""
    try:
        return launch.main(argv)
    except SystemExit as ended:
        return int(ended.code or 0)


def sent(google: Google) -> dict:
    (body,) = google.bodies("POST", LAUNCHES)
    return body["launchParameter"]


# Flags and parameters


def test_flags_become_parameters_and_the_rest_is_beams():
    parser = streaming.parser()
    words = ["--subscription", "projects/my-project/subscriptions/transactions", "--model=gs://b/m"]
    words += ["--no_create_tables", "--batch_rows=3", "--experiments=a", "--num_x", "4", "--flag"]
    parameters, rest = flex.parameters(parser, words)
    assert parameters == {
        "subscription": "projects/my-project/subscriptions/transactions",
        "model": "gs://b/m",
        "create_tables": "false",
        "batch_rows": "3",
    }
    assert rest == ["experiments=a", "num_x=4", "flag"]


def test_every_parameter_that_launch_sends_is_in_the_template(capsys):
    for pipeline, extra in (("streaming", []), ("batch", ["--input=gs://b/x.parquet"])):
        assert launch.main([pipeline, *PROJECT, "--dry_run", *extra]) == 0
        shown = json.loads(capsys.readouterr().out)
        known = {parameter["name"] for parameter in metadata.metadata(pipeline)["parameters"]}
        assert shown["parameters"].keys() <= known


@pytest.fixture
def python_of_image(monkeypatch):
    """Submits with the image's own versions, whichever Python runs the tests."""
    monkeypatch.setattr(versions, "here", versions.of_image)


@pytest.mark.usefixtures("python_of_image")
def test_dry_run_of_a_direct_launch_shows_the_command_line(capsys):
    argv = ["batch", *PROJECT, "--via=direct", "--input=gs://b/x.parquet", f"--image={IMAGE}", "--dry_run"]
    assert launch.main(argv) == 0
    shown = capsys.readouterr().out
    assert f"--sdk_container_image={IMAGE} --sdk_location=container" in shown
    assert "--no_save_main_session" in shown
    assert "--setup_file" not in shown
    assert launch.main([word for word in argv if not word.startswith("--image")]) == 0
    assert "/setup.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--min_num_workers=5"], "--min_num_workers: expected at most --max_num_workers=4, got 5"),
        (["--num_workers=5"], "--num_workers: expected at most --max_num_workers=4, got 5"),
        (["--prime", "--machine_type=n2-highcpu-4"], "--prime: expected no --machine_type with it"),
        (["--gpu=nvidia-l4:1", "--prime", f"--image={IMAGE}"], "--prime: expected no --gpu with it"),
        (
            ["--gpu=nvidia-l4:2", "--machine_type=n2-highcpu-4", f"--image={IMAGE}"],
            "--machine_type: expected g2-standard-24 for 2 nvidia-l4, got 'n2-highcpu-4'",
        ),
        (["--gpu=nvidia-l4:3", f"--image={IMAGE}"], "--gpu: expected 1, 2, 4, 8 of nvidia-l4, got"),
        (
            ["--region=nowhere 1"],
            "--region: expected REGION such as us-central1, got 'nowhere 1': it has ' '",
        ),
        (["--gpu=nvidia-l4:1"], "--gpu: expected an --image with a build of torch for CUDA"),
        (["--via=direct", "--template=gs://b-1/t.json"], "--template: expected --via=flex with it"),
        (["--transform_name_mapping=a=b"], "--transform_name_mapping: expected --update with it"),
        (
            ["--job_name=Upper"],
            "--job_name: expected NAME such as transactions-daily, got 'Upper': it has 'U'",
        ),
        (["--gpu=nvidia-l4:"], "--gpu: expected TYPE:COUNT, got 'nvidia-l4:': COUNT '' has 0 characters"),
        (["--temp_location=/tmp"], "--temp_location: expected gs://BUCKET or gs://BUCKET/PATH, got '/tmp'"),
        (["--prefix=Bad"], "--prefix: expected PREFIX such as staging-, got 'Bad': it has 'B'"),
        (["--modle=x"], "unknown option --modle; did you mean --model?"),
        (["--subscription=transactions"], "expected projects/PROJECT/subscriptions/SUBSCRIPTION, got"),
        (["--update", "--transform_name_mapping=a"], "--transform_name_mapping: expected OLD=NEW, got 'a'"),
        (["--dataflow_endpoint=http://example.com"], "--dataflow_endpoint: expected https://"),
    ],
)
def test_what_cannot_be_launched_is_refused_before_anything_is_asked(argv, reason, capsys):
    assert status(["streaming", *PROJECT, "--skip_preflight", *argv]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["batch", "--input_query=SELECT 1", "--row_filter=x"], "--row_filter goes with --input_table"),
        (
            ["batch", "--input=gs://b-1/x.parquet", "--remote_rows=0"],
            "--remote_rows: expected a whole",
        ),
        (
            ["batch", "--input=gs://b-1/x.parquet", "--processes=2"],
            "--processes: expected a job on this machine",
        ),
        (["streaming", "--scorer=vertex"], "--scorer=vertex needs --vertex_endpoint"),
        (["streaming", "--scorer=torchserve"], "--scorer=torchserve needs --torchserve_url"),
        (
            ["streaming", "--medium_threshold=50", "--high_threshold=10"],
            "--medium_threshold=50.0 is above --high_threshold=10.0",
        ),
        (["streaming", "--medium_threshold=nan"], "--medium_threshold: expected a number, got 'nan'"),
        (
            ["streaming", "--write_method=storage_write_api"],
            "expected a method without Java, which the image of the template",
        ),
    ],
)
def test_what_the_pipeline_would_refuse_is_refused_by_the_launch(argv, reason, capsys):
    assert status([*argv, *PROJECT, "--dry_run"]) == 2
    assert reason in capsys.readouterr().err


def test_what_the_launch_knows_the_pipeline_need_not_be_told(capsys):
    for via in ("flex", "direct"):
        flags = ["--dry_run", "--write_method=file_loads", f"--via={via}"]
        assert launch.main(["streaming", *PROJECT, *flags]) == 0  # loads stage files in --temp_location
        assert "file_loads" in capsys.readouterr().out


def test_a_gpu_gets_a_machine_that_carries_it():
    assert machine_for("nvidia-l4", None) == "g2-standard-4"
    assert machine_for("nvidia-l4:1", "g2-standard-16") == "g2-standard-16"
    assert machine_for("nvidia-tesla-a100:2", None) == "a2-highgpu-2g"
    assert machine_for("nvidia-h100-80gb:8", None) == "a3-highgpu-8g"
    assert machine_for("nvidia-tesla-t4", None) == "n1-standard-4"
    with pytest.raises(OptionError, match="--machine_type: expected one of N1 for nvidia-tesla-t4"):
        machine_for("nvidia-tesla-t4", "n2-standard-2")


def test_an_image_of_other_versions_is_refused_of_a_direct_launch(monkeypatch, capsys):
    python, _ = versions.of_image()
    monkeypatch.setattr(versions, "here", lambda: ("3.99", "2.99.0"))
    argv = ["batch", *PROJECT, "--via=direct", "--input=gs://b/x.parquet", f"--image={IMAGE}", "--dry_run"]
    assert launch.main(argv) == 2
    shown = capsys.readouterr().err
    assert f"Python is 3.99 here and {python} there and apache-beam is 2.99.0 here" in shown


def test_what_is_for_streams_is_refused_of_a_batch(capsys):
    for flag in ("--update", "--streaming_mode=exactly_once"):
        assert launch.main(["batch", *PROJECT, "--dry_run", "--input=gs://b/x.parquet", flag]) == 2
        assert f"{flag.partition('=')[0]}: expected a streaming job" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["batch", "streaming"])
def test_the_help_of_a_batch_shows_no_flag_of_a_stream(name, capsys):
    with pytest.raises(SystemExit):
        launch.main([name, "--help"])
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    flags = ("--update", "--reset", "--transform_name_mapping", "--streaming_mode")
    assert [flag in shown for flag in flags] == [name == "streaming"] * 4


def test_labels_have_the_form_that_dataflow_takes():
    assert label_value("my-project.Anomaly x") == "my-project-anomaly-x"
    assert len(label_value("a" * 100)) == 63


# Flex


def test_flex_launch_sends_parameters_and_environment(google: Google, capsys):
    flags = ["--min_num_workers=1", "--max_num_workers=8", "--num_workers=2", "--machine_type=g2-standard-24"]
    flags += ["--no_use_public_ips", "--subnetwork=regions/europe-west1/subnetworks/s", "--gpu=nvidia-l4:2"]
    flags += [
        f"--image={IMAGE}",
        "--streaming_mode=exactly_once",
        "--experiments=x1",
        "--profile_cpu",
        "--high_threshold=40",
    ]
    assert run(google, "streaming", "--skip_preflight", "--format=json", *flags) == 0
    (launched,) = json.loads(capsys.readouterr().out)
    assert launched["url"] == (
        "https://console.cloud.google.com/dataflow/jobs/europe-west1/2026-01-01_00_00_00-1?project=local-project"
    )
    parameter = LaunchFlexTemplateParameter.wrap(
        json_format.ParseDict(sent(google), LaunchFlexTemplateParameter.pb(LaunchFlexTemplateParameter()))
    )
    assert parameter.container_spec_gcs_path == f"gs://{BUCKET}/templates/streaming.json"
    assert dict(parameter.parameters) == {
        "model": f"gs://{BUCKET}/model",
        "subscription": "projects/local-project/subscriptions/transactions-pipeline",
        "alert_topic": "projects/local-project/topics/alerts",
        "output_dataset": "local-project.anomaly",
        "high_threshold": "40",
    }
    environment = parameter.environment
    assert (environment.num_workers, environment.max_workers) == (2, 8)
    assert environment.machine_type == "g2-standard-24"
    assert environment.sdk_container_image == IMAGE
    assert list(environment.additional_experiments) == [
        "min_num_workers=1",
        "worker_accelerator=type:nvidia-l4;count:2;install-nvidia-driver",
        "x1",
    ]
    assert list(environment.additional_pipeline_options) == ["profile_cpu"]
    assert environment.ip_configuration.name == "WORKER_IP_PRIVATE"
    assert environment.streaming_mode.name == "STREAMING_MODE_EXACTLY_ONCE"
    assert environment.enable_streaming_engine
    assert dict(environment.additional_user_labels) == {
        "app": "transaction-anomaly",
        "anomaly_dataset": "local-project-anomaly",
        "pipeline": "streaming",
    }


def test_prime_names_no_machine_and_update_names_its_steps(google: Google, capsys):
    renamed = ["--transform_name_mapping=Old/Step=New/Step", "--transform_name_mapping=Gone="]
    google.add_job({"name": "transaction-anomaly-streaming", "currentState": "JOB_STATE_RUNNING"})
    update = ["--update", "--reset=all", "--yes"]
    assert run(google, "streaming", "--skip_preflight", "--prime", *update, *renamed) == 0
    body = sent(google)
    assert body["update"] is True
    assert body["transformNameMappings"] == {"Old/Step": "New/Step", "Gone": ""}
    assert body["environment"]["additionalExperiments"] == ["enable_prime"]
    assert "machineType" not in body["environment"]
    assert "https://console.cloud.google.com/dataflow/jobs/" in capsys.readouterr().out


def test_labels_and_key_go_with_the_job_and_not_to_the_pipeline(google: Google):
    key = "projects/my-keys/locations/europe-west1/keyRings/data/cryptoKeys/anomaly"
    flags = ["--labels=team=fraud", "--label=cost=7", "--profile_cpu", f"--dataflow_kms_key={key}"]
    assert run(google, "batch", "--skip_preflight", "--input=gs://b/x.parquet", *flags) == 0
    environment = sent(google)["environment"]
    assert environment["kmsKeyName"] == key
    assert environment["additionalPipelineOptions"] == ["profile_cpu"]
    assert environment["additionalUserLabels"] == {
        "team": "fraud",
        "cost": "7",
        "app": "transaction-anomaly",
        "anomaly_dataset": "local-project-anomaly",
        "pipeline": "batch",
    }


def test_a_refused_launch_names_the_role(google: Google, capsys):
    google.denied.add("launch")
    assert run(google, "batch", "--skip_preflight", "--input=gs://b/x.parquet") == 1
    shown = capsys.readouterr().err
    assert "dataflow.jobs.create is missing" in shown
    assert "--role=roles/dataflow.developer" in shown


def test_templates_are_uploaded_as_they_are_written(google: Google, capsys):
    argv = ["--project=local-project", "--region=europe-west1", "--no_image", "--tag=v1"]
    assert build.main(argv) == 1
    assert "anomaly resources create --project local-project" in capsys.readouterr().err
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    assert build.main(argv) == 0
    assert google.storage.names(BUCKET) == ["templates/batch.json", "templates/streaming.json"]
    found = json.loads(google.storage.objects[BUCKET, "templates/streaming.json"].data)
    assert found["image"] == IMAGE
    assert found["metadata"]["defaultStreamingMode"] == "AT_LEAST_ONCE"


def test_templates_are_not_uploaded_without_credentials(monkeypatch, capsys):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    assert build.main(["--project=local-project", "--no_image", "--tag=v1"]) == 1
    assert "To fix it: gcloud auth application-default login" in capsys.readouterr().err


# Jobs


def test_wait_follows_state_and_messages_to_the_end(google: Google, capsys):
    google.course = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_DONE")
    google.messages["2026-01-01_00_00_00-1"] = [
        {"id": "1", "time": "2026-01-01T00:00:01Z", "messageText": "Worker pool started.",
         "messageImportance": "JOB_MESSAGE_BASIC"},
    ]  # fmt: skip
    flags = ["--skip_preflight", "--wait", "--poll_seconds=0.01", "--input=gs://b/x.parquet"]
    assert run(google, "batch", *flags) == 0
    shown = capsys.readouterr().err
    assert shown.count("Worker pool started.") == 1
    states = [line.split()[-1] for line in shown.splitlines() if " state " in line]
    assert states == ["RUNNING", "DONE"]


def test_wait_tells_a_failed_job_by_its_exit_code(google: Google, capsys):
    google.course = ("JOB_STATE_RUNNING", "JOB_STATE_FAILED")
    flags = ["--skip_preflight", "--wait", "--poll_seconds=0.01", "--input=gs://b/x.parquet"]
    assert run(google, "batch", *flags) == 1


def test_list_status_drain_and_cancel(google: Google, capsys):
    ours = {"labels": {"app": "transaction-anomaly"}}
    google.add_job({"name": "old", "currentState": "JOB_STATE_DONE", "type": "JOB_TYPE_BATCH"} | ours)
    stream = {"name": "stream", "currentState": "JOB_STATE_RUNNING", "type": "JOB_TYPE_STREAMING"} | ours
    google.add_job(stream)
    google.add_job({"name": "load", "currentState": "JOB_STATE_RUNNING", "type": "JOB_TYPE_BATCH"} | ours)
    google.add_job({"name": "theirs", "currentState": "JOB_STATE_RUNNING", "type": "JOB_TYPE_BATCH"})
    assert run(google, "list", "--format=csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["name"] for row in rows] == ["load", "stream", "old"]
    assert run(google, "list", "--all") == 0
    assert "theirs" in capsys.readouterr().out
    assert run(google, "list", "--active", "--format=json") == 0
    assert [job["name"] for job in json.loads(capsys.readouterr().out)] == ["load", "stream"]

    assert run(google, "status", "stream") == 0
    assert "RUNNING" in capsys.readouterr().out
    assert run(google, "drain", "load") == 1
    assert "load: expected a streaming job to drain, got a batch job: cancel it" in capsys.readouterr().err
    assert run(google, "drain", "stream", "--wait", "--poll_seconds=0.01") == 0
    assert google.jobs["2026-01-01_00_00_00-2"]["currentState"] == "JOB_STATE_DRAINED"
    assert run(google, "cancel", "2026-01-01_00_00_00-3", "--wait", "--poll_seconds=0.01") == 0
    assert google.jobs["2026-01-01_00_00_00-3"]["currentState"] == "JOB_STATE_CANCELLED"
    assert run(google, "cancel", "stream") == 1
    assert "no active job stream in local-project, europe-west1" in capsys.readouterr().err


def test_list_and_drain_do_without_torch_and_the_pipelines():
    lines = "import sys; from cloud import launch; print(*sys.modules, sep='\\n')"
    seen = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    loaded = set(seen.stdout.splitlines())
    assert "cloud.launch" in loaded
    assert not loaded & {"torch", "pipelines.batch", "pipelines.streaming"}


def test_a_wait_that_takes_too_long_says_where_to_look(google: Google):
    job = google.add_job({"name": "stream", "currentState": "JOB_STATE_RUNNING"})
    jobs = Jobs("local-project", "europe-west1", google.url, poll_seconds=0.01)
    with pytest.raises(JobError, match=r"job stream is RUNNING after 0 s: https://console\.cloud"):
        jobs.wait(job["id"], timeout=0.05)
