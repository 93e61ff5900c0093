"""Batch on other runners than FnApiRunner gives the same rows, in a process that ends with status 0."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.version import __version__ as beam_version

from tests.pipelines.batch_jobs import model_flags, output_rows, write_lines
from tests.test_layout import ROOT

ROWS = 3_000


def prism() -> str | None:
    """Returns the path of Beam's Prism: in Beam's cache, as PrismRunner looks there, or on the PATH.

    Without a download: the archive and the program of a release have the names in its address.
    """
    cache = Path(PrismJobServer.BIN_CACHE)
    version = f"v{beam_version}"
    url = PrismJobServer._construct_download_url(version, version, platform.system(), platform.machine())
    archive = cache / url.rpartition("/")[2]
    cached = (archive.with_suffix(""), archive, cache / "prism")  # the last one by `go install`
    found = next((str(path) for path in cached if path.is_file()), None)
    on_path = shutil.which("prism")
    return found or (on_path if on_path and _is_beams(on_path) else None)


def _is_beams(path: str) -> bool:
    """Tells Beam's Prism from other programs of that name."""
    try:
        shown = subprocess.run(
            [path, "--help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"job_port" in shown.stdout + shown.stderr


def run_batch(*argv: str) -> str:
    """Runs the command; returns the last line of its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "common.anomaly", "batch", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture
def job(model_dir, tmp_path) -> list[str]:
    for number in range(3):
        write_lines(tmp_path / f"{number}.jsonl", ROWS // 3, seed=number)
    return [f"--input={tmp_path}/*.jsonl", *model_flags(model_dir)]


@pytest.mark.integration
def test_prism_gives_the_same_rows(job, tmp_path):
    """Its counters are not compared: Prism loses those of a bundle that it splits."""
    location = prism()
    if location is None:
        pytest.skip(f"no Prism in Beam's cache, {PrismJobServer.BIN_CACHE}, or as `prism` on the PATH")
    run_batch(*job, f"--output={tmp_path}/default")
    run_batch(*job, f"--output={tmp_path}/prism", "--runner=PrismRunner", f"--prism_location={location}")
    rows = output_rows(tmp_path / "prism")
    assert rows == output_rows(tmp_path / "default")
    assert all(rows.values())


@pytest.mark.integration
def test_beams_embedded_job_server_gives_the_same_rows_and_counters(job, tmp_path):
    flags = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]
    counters = run_batch(*job, f"--output={tmp_path}/embedded", *flags)
    assert f"rows in: {ROWS:,}, " in counters
    assert counters == run_batch(*job, f"--output={tmp_path}/default")
    rows = output_rows(tmp_path / "embedded")
    assert rows == output_rows(tmp_path / "default")
    assert all(rows.values())


class TestSearchForPrism:
    @pytest.fixture(autouse=True)
    def nowhere(self, tmp_path, monkeypatch):
        """A machine of its own: neither a cache nor a PATH that names a Prism."""
        monkeypatch.setattr(PrismJobServer, "BIN_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        for name in ("cache", "bin"):
            (tmp_path / name).mkdir()

    def test_there_is_none(self):
        assert prism() is None

    @pytest.mark.parametrize(
        "name",
        [
            f"apache_beam-v{beam_version}-prism-linux-amd64.zip",
            f"apache_beam-v{beam_version}-prism-linux-amd64",
            "prism",
        ],
    )
    def test_in_beams_cache(self, tmp_path, name):
        (tmp_path / "cache" / name).touch()
        assert prism() == str(tmp_path / "cache" / name)

    @pytest.mark.parametrize(("says", "is_beams"), [("-job_port int", True), ("mock an API", False)])
    def test_on_the_path(self, tmp_path, says, is_beams):
        path = tmp_path / "bin" / "prism"
        path.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 2\n")
        path.chmod(0o755)
        assert prism() == (str(path) if is_beams else None)
