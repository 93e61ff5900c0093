"""The build of the image, by the real gcloud against a local Cloud Build: what it says, and how it fails."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from cloud.resources.gcloud import Gcloud, GcloudError
from templates import build
from tests.cloud.google_server import Google

BUCKET = "local-project-anomaly"
PLACE = ["--project=local-project", "--region=europe-west1", "--tag=v1"]


@pytest.mark.integration
def test_region_and_machine_of_the_build_are_chosen_and_the_log_is_named_at_once(
    google: Google, gcloud, capsys
):
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    assert build.main([*PLACE, "--build_region=us-east1", "--build_machine=e2-highcpu-32"]) == 0
    shown = capsys.readouterr()
    assert "Build build-1; its log: https://localhost/log\n" in shown.err
    assert "Uploading tarball of [" in shown.err  # gcloud's own words
    assert "/templates/streaming.json" in shown.out
    ((path, body),) = [(path, body) for method, path, body in google.requests if method == "POST"]
    assert path == "/v1/projects/local-project/locations/us-east1/builds"
    assert body["options"]["machineType"] == "E2_HIGHCPU_32"


@pytest.mark.integration
def test_a_failed_build_names_its_step_and_its_log_and_no_template_is_uploaded(
    google: Google, gcloud, capsys
):
    google.storage.buckets[BUCKET] = {"name": BUCKET}
    steps = [
        {"name": "docker", "args": ["pull"], "status": "SUCCESS"},
        {"name": "docker", "args": ["build", "."], "status": "FAILURE", "exitCode": 17},
        {"name": "docker", "args": ["push"], "status": "QUEUED"},
    ]
    detail = {"type": "USER_BUILD_STEP", "detail": "Build step failure: build step 1 exited with 17."}
    google.built = {"status": "FAILURE", "steps": steps, "failureInfo": detail}
    assert build.main(PLACE) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the image: build build-1 ended with FAILURE, in step 2, docker build ., which ended with 17: "
        "Build step failure: build step 1 exited with 17. The log: https://localhost/log"
    )
    assert [name for name in google.storage.names(BUCKET) if name.startswith("templates/")] == []


@pytest.fixture
def script(tmp_path: Path, monkeypatch):
    """Puts a program in place of gcloud."""

    def write(lines: str) -> None:
        program = tmp_path / "gcloud"
        program.write_text(f"#!{sys.executable}\nimport os, sys, time\n{lines}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return write


class Screen:
    """A stderr that notes, in a file, that it has shown a text."""

    def __init__(self, text: str, note: Path) -> None:
        self.text, self.note, self.shown = text, note, ""

    def write(self, text: str) -> None:
        self.shown += text
        if self.text in self.shown:
            self.note.touch()

    def flush(self) -> None:
        pass


def test_what_gcloud_says_is_shown_while_it_runs(script, tmp_path: Path, monkeypatch):
    note = tmp_path / "seen"
    # It does not end before its first line was shown.
    script(f"""
print("step 1", file=sys.stderr)
print('{{"id": "7"}}')
while not os.path.exists({str(note)!r}):
    time.sleep(0.01)
""")
    screen = Screen("step 1", note)
    monkeypatch.setattr(sys, "stderr", screen)
    assert json.loads(Gcloud().follow("builds", "submit", "--format=json")) == {"id": "7"}
    assert screen.shown == "$ gcloud builds submit --format=json\nstep 1\n"


def test_a_log_on_standard_output_is_shown_as_well(script, capsys):
    script("print('pulling'); print('ERROR: no'); print('ERROR: no', file=sys.stderr); sys.exit(3)")
    with pytest.raises(GcloudError, match="gcloud builds log --quiet ended with 3: ERROR: no"):
        Gcloud().follow("builds", "log")
    assert "pulling\n" in capsys.readouterr().err
