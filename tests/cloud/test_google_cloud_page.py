"""The steps of docs/google-cloud.md, run as they stand against local servers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest

from cloud.resources.declared import Names, roles
from local.endpoints import Endpoints
from tests.cloud.google_server import Google
from tests.cloud.launcher import command_line

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "google-cloud.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUCKET = "local-project-anomaly"


def blocks() -> list[tuple[str, str]]:
    """Every shell block with the word behind `sh`: "account" needs a Google account."""
    return [
        (kind.strip(), text) for kind, text in re.findall(r"^```sh([^\n]*)\n(.*?)^```$", PAGE, re.M | re.S)
    ]


def test_what_is_not_run_here_is_the_sign_in_alone():
    skipped = [line for kind, text in blocks() if kind for line in text.splitlines()]
    assert [kind for kind, _ in blocks() if kind] == ["account"]
    assert all(line.startswith(("gcloud auth", "gcloud config set project")) for line in skipped)


def commands(text: str) -> set[str]:
    """The commands of shell blocks; --yes, which a person can do without, is left out."""
    found = re.findall(r"^ *(?:anomaly|gcloud) .*$", text, re.M)
    return {line.strip().removesuffix(" --yes") for line in found}


def test_the_steps_of_the_readme_are_steps_of_this_page():
    section = README.partition("## From laptop to Dataflow")[2].partition("\n## ")[0]
    steps = commands(section)
    assert len(steps) >= 9
    assert steps - commands("".join(text for _, text in blocks())) == set()


@pytest.mark.parametrize("text", [PAGE, README], ids=["page", "readme"])
def test_the_table_of_roles_is_the_declaration(text):
    table = text.partition("| role | on | for |\n")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`(roles/[\w.]+)`", table))
    names = Names("my-project", vertex=True)
    assert listed == {role.name for role in roles(names) if role.member.endswith(names.account)}
    assert "WRITER" in table


@pytest.mark.integration
@pytest.mark.timeout(900)  # some sixty calls of gcloud, each a second of computing
def test_the_steps_of_the_page_run_in_order(google: Google, gcloud, local_stack: Endpoints, tmp_path: Path):
    place = tmp_path / "checkout"
    place.mkdir()
    # Commands come from this interpreter's environment, wherever the steps are run.
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "anomaly").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m common.anomaly "$@"\n')
    (bin_dir / "anomaly").chmod(0o755)
    environment = {
        **os.environ,
        **local_stack.environment(),
        "GOOGLE_APPLICATION_CREDENTIALS": os.environ["GOOGLE_APPLICATION_CREDENTIALS"],
        "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done: list[str] = []

    def run(line: str) -> None:
        exports = "export PROJECT=local-project REGION=us-central1; "
        shell = ["bash", "-euo", "pipefail", "-c", exports + line]
        began = time.monotonic()
        finished = subprocess.run(
            shell, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, f"{line}\n{finished.stdout[-1500:]}\n{finished.stderr[-4000:]}"
        print(f"{time.monotonic() - began:6.1f} s  {line}")  # with -s, or when a later line fails
        done.append(line)

    try:
        for kind, text in blocks():
            for line in text.splitlines():
                if not kind and not line.startswith("export "):
                    after(line, google, run)
    finally:
        topics = "anomaly resources delete --project local-project --emulators --yes"
        subprocess.run(["bash", "-c", topics], cwd=place, env=environment, capture_output=True, check=False)
    assert len(done) >= 14


def start_pipeline(google: Google, run) -> None:
    """Does as Dataflow after the launch of a template: the image's program submits the job."""
    (body, *_) = [body for _, path, body in reversed(google.requests) if "flexTemplates" in path]
    body, job_id = body["launchParameter"], list(google.jobs)[-1]
    launched = google.jobs.pop(job_id)
    spec = json.loads(google.storage.objects[BUCKET, "templates/streaming.json"].data)
    words = [*command_line(google, body, spec), "--region=us-central1"]
    run(f"{sys.executable} -m templates.main {shlex.join(words)}")
    submitted = list(google.jobs.values())[-1]
    submitted["currentState"] = launched["currentState"]


def after(line: str, google: Google, run) -> None:
    """Runs a line and looks at what it left behind."""
    # Training to the end is what test_readme.py does; here the way of the model into the bucket counts.
    run(f"{line} --epochs=2 --rows=20000" if "anomaly train" in line else line)
    if "--monitoring" in line:
        kinds = [name.split("/")[2] for name in google.monitoring.things]
        assert (kinds.count("dashboards"), kinds.count("alertPolicies")) == (1, 7)
    if "resources create" in line:
        bindings = google.policies["projects/local-project"]["bindings"]
        assert {binding["role"] for binding in bindings} == {
            "roles/dataflow.worker",
            "roles/bigquery.jobUser",
            "roles/bigquery.readSessionUser",
            "roles/logging.logWriter",
        }
    elif "anomaly train" in line:
        assert "model/manifest.json" in google.storage.names(BUCKET)
    elif "anomaly templates" in line:
        (build,) = google.builds.values()
        assert build["steps"][0]["args"][1] == "--file=templates/Dockerfile"
        assert build["serviceAccount"].endswith("/anomaly-build@local-project.iam.gserviceaccount.com")
        source = build["source"]["storageSource"]
        assert source["bucket"] == BUCKET
        archive = google.storage.objects[source["bucket"], source["object"]].data
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            sent = {name.removeprefix("./") for name in files.getnames()}
        assert {
            "setup.py",
            "templates/Dockerfile",
            "templates/requirements.txt",
            "pipelines/batch.py",
        } <= sent
        assert "templates/streaming.json" in google.storage.names(BUCKET)
    elif "launch streaming" in line:
        start_pipeline(google, run)
        assert [job["name"] for job in google.jobs.values()][-1] == "transaction-anomaly-streaming"
        (launched, *_) = [body for _, path, body in reversed(google.requests) if "flexTemplates" in path]
        parameter = launched["launchParameter"]
        assert parameter.get("update", False) is ("--update" in line)
        # Said once, at the first launch.
        assert parameter["parameters"]["batch_millis"] == "50"
        assert parameter["environment"]["maxWorkers"] == (8 if "--update" in line else 4)
    elif "launch drain" in line:
        states = [job.get("requestedState") for job in google.jobs.values()]
        assert "JOB_STATE_DRAINED" in states
    elif "resources delete" in line:
        assert BUCKET not in google.storage.buckets
        assert google.accounts == set()
        assert google.monitoring.things == {}  # also without --monitoring
