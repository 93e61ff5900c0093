"""The real TorchServe, started and stopped by the project's own command: processes, ports, and refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import requests

from local.process import free_port
from model.serving.torchserve import process
from model.serving.torchserve.__main__ import main
from model.serving.torchserve.config import Layout, read_properties
from model.serving.torchserve.management import list_models
from tests.model.serving.servers import port_flags

pytest_plugins = ("tests.model.serving.fixtures",)
pytestmark = pytest.mark.integration


def test_start_and_stop_in_the_background_leave_nothing_behind(torchserve, served_artifact, capsys):
    import psutil

    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        layout = Layout(Path(directory).resolve() / "run")
        run_dir = ["--run_dir", str(layout.root)]
        start = ["start", *run_dir, "--model", served_artifact.uri, "--workers", "1", *port_flags()]
        assert main(start) == 0
        try:
            launcher = process.find_process(layout)
            family = [launcher, *launcher.children(recursive=True)]
            assert any("java" in member.name() for member in family)
            assert not layout.key_file.exists()
            assert main(start) == 1
            assert "runs already" in capsys.readouterr().err
        finally:
            assert main(["stop", *run_dir]) == 0
        assert not any(psutil.pid_exists(member.pid) and member.is_running() for member in family[1:])
        assert main(["stop", *run_dir]) == 0
        assert "No TorchServe runs" in capsys.readouterr().out
        assert not layout.temporary.exists()


def test_a_start_that_is_terminated_leaves_neither_a_server_nor_a_traceback(archived_artifact):
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        layout = Layout(Path(directory).resolve() / "run")
        command = [sys.executable, "-m", "model.serving.torchserve", "start", "--workers", "1", *port_flags()]
        command += ["--run_dir", str(layout.root), "--model", archived_artifact.uri]
        starting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (layout.state.exists() and layout.state.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        family = [launcher := process.find_process(layout), *launcher.children(recursive=True)]
        starting.terminate()
        err = starting.communicate(timeout=60)[1]
        assert starting.returncode == 128 + signal.SIGTERM
        assert "interrupted" in err
        assert "Traceback" not in err
        assert process.find_process(layout) is None
        assert not any(member.is_running() for member in family)


def test_a_server_in_the_foreground_ends_when_its_output_is_cut(archived_artifact):
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        layout = Layout(Path(directory).resolve() / "run")
        command = [sys.executable, "-m", "model.serving.torchserve", "start", "--workers", "1", *port_flags()]
        command += ["--run_dir", str(layout.root), "--model", archived_artifact.uri, "--foreground"]
        reader, writer = os.pipe()
        os.close(reader)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
        os.close(writer)
        assert done.returncode == 141
        assert "Traceback" not in done.stderr
        assert process.find_process(layout) is None


def test_stop_ends_a_server_whose_launcher_was_killed(archived_artifact, capsys):
    import psutil

    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        layout = Layout(Path(directory).resolve() / "run")
        run_dir = ["--run_dir", str(layout.root)]
        start = ["start", *run_dir, "--model", archived_artifact.uri, "--workers", "1", *port_flags()]
        assert main(start) == 0
        try:
            server = process.server_of(layout)
            launcher = process.find_process(layout)
            family = launcher.children(recursive=True)
            assert any("java" in member.name() for member in family)
            launcher.kill()
            psutil.wait_procs([launcher], timeout=30)
            assert requests.get(f"{server.inference}/ping", timeout=30).ok
            assert main(start) == 1
            assert "runs already" in capsys.readouterr().err
            assert layout.state.exists()
        finally:
            assert main(["stop", *run_dir]) == 0
        assert "TorchServe has stopped" in capsys.readouterr().out
        assert psutil.wait_procs(family, timeout=10)[1] == []
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{server.inference}/ping", timeout=30)
        assert not layout.state.exists()


def test_ports_in_use_are_named_by_their_flag_and_the_other_server_is_left_alone(
    torchserve, served_artifact, capsys
):
    values = read_properties(torchserve.layout.config)
    taken = {
        name: values[f"{name}_address"].rsplit(":", 1)[1] for name in ("inference", "management", "metrics")
    }
    taken |= {name: values[f"{name}_port"] for name in ("grpc_inference", "grpc_management")}
    all_taken = [text for name, port in taken.items() for text in (f"--{name}_port", port)]
    cases = [(all_taken, "inference")]
    cases += [([*port_flags(), f"--{name}_port", port], name) for name, port in taken.items()]
    for flags, name in cases:
        with tempfile.TemporaryDirectory(prefix="ts-") as directory:
            start = [
                "start",
                "--run_dir",
                directory,
                "--model",
                served_artifact.uri,
                "--workers",
                "1",
                *flags,
            ]
            assert main(start) == 1
            assert f"--{name}_port {taken[name]}: 127.0.0.1:" in capsys.readouterr().err
            assert process.find_process(Layout(Path(directory))) is None
    assert all(model.ready for model in list_models(torchserve.server))


def test_two_flags_with_one_port_are_refused(archived_artifact, capsys):
    port = str(free_port())
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        start = ["start", "--run_dir", directory, "--model", archived_artifact.uri, *port_flags()]
        assert main([*start, "--metrics_port", port, "--grpc_inference_port", port]) == 1
        assert f"--grpc_inference_port {port}: 127.0.0.1:{port} cannot be bound" in capsys.readouterr().err


def test_an_artifact_without_an_archive_says_what_to_do(served_artifact, tmp_path, capsys):
    from model import artifact

    bare = artifact.write(tmp_path / "bare", served_artifact.manifest, [served_artifact.model_path])
    with tempfile.TemporaryDirectory(prefix="ts-") as directory:
        if process.missing_software():
            pytest.skip(process.missing_software())
        assert main(["start", "--run_dir", directory, "--model", bare.uri]) == 1
        assert "torch-model-archiver" in capsys.readouterr().err


def test_without_java_the_command_says_what_to_install(served_artifact, tmp_path):
    command = [sys.executable, "-m", "model.serving.torchserve", "start", "--model", served_artifact.uri]
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--run_dir", str(tmp_path / "r"), "--inference_port", str(free_port())],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install openjdk-17-jre-headless" in done.stderr
    assert not (tmp_path / "r").exists()
