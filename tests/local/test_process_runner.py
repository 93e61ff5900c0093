"""The runner of several processes: the options of a worker, and the job when a worker ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import psutil
import pyarrow as pa
import pytest
import torch
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.portability.api import endpoints_pb2
from google.protobuf import text_format

from local import process_runner
from local.process_runner import ProcessRunner, WorkerEndedError
from model.synthetic.generator import TransactionGenerator
from publisher.messages import MessageSource
from publisher.publish import write_jsonl
from transforms.metrics import NAMESPACE, counter, totals

ROOT = Path(__file__).resolve().parents[2]
WORKER = "apache_beam.runners.worker.sdk_worker_main"
OTHER_LOOPBACK = "127.0.0.2"
"""Reaches a server that listens on every address, and none that listens on 127.0.0.1."""


def run(step: Callable[[int], object], *flags: str, workers: int = 2) -> beam.runners.runner.PipelineResult:
    """Runs `step` for some elements, spread over the workers."""
    options = PipelineOptions(
        ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}", *flags]
    )
    pipeline = beam.Pipeline(runner=ProcessRunner(), options=options)
    _ = pipeline | beam.Create(range(8)) | beam.Reshuffle() | beam.Map(step)
    return pipeline.run()


class Look:
    """Writes down what a worker process knows, in a file of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, element: int) -> None:
        counter("looks").inc()
        logging.getLogger("a step").warning("element %d", element)
        logging.getLogger("a step").info("not to be seen at the level of this process")
        control = text_format.Parse(
            os.environ["CONTROL_API_SERVICE_DESCRIPTOR"], endpoints_pb2.ApiServiceDescriptor()
        )
        with socket.socket() as sock:
            elsewhere = sock.connect_ex((OTHER_LOOPBACK, int(control.url.rpartition(":")[2])))
        options = FileSystems._pipeline_options.view_as(GoogleCloudOptions)
        seen = {
            "url": control.url,
            "elsewhere": elsewhere,
            "project": options.project,
            "labels": options.labels,
            "threads": [pa.cpu_count(), torch.get_num_threads()],
            "variable": os.environ.get("A_VARIABLE"),
        }
        (self.directory / str(os.getpid())).write_text(json.dumps(seen))


@pytest.mark.integration
def test_what_a_worker_knows(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("A_VARIABLE", "of the launch")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    flags = ["--project=my-project", "--labels=a=b", "--labels=c=d"]
    with caplog.at_level(logging.WARNING):
        result = run(Look(tmp_path), *flags)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2, "every worker has its share"
    assert os.getpid() not in pids
    for path in tmp_path.iterdir():
        seen = json.loads(path.read_text())
        assert seen.pop("url").startswith("127.0.0.1:")
        assert seen.pop("elsewhere") != 0, "the runner's servers ask nobody who they are"
        assert seen == {
            "project": "my-project",
            "labels": ["a=b", "c=d"],
            "threads": [1, 1],
            "variable": "of the launch",
        }
    assert totals(result) == {"looks": 8}, NAMESPACE
    messages = [record.getMessage() for record in caplog.records if record.name == process_runner.__name__]
    assert sorted(messages) == [f"element {number}" for number in range(8)]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def running_workers() -> list[psutil.Process]:
    """The workers among the processes that the tests have started."""
    family = psutil.Process().children(recursive=True)
    alive = [process for process in family if process.status() != psutil.STATUS_ZOMBIE]
    return [process for process in alive if process.cmdline()[-1:] == [WORKER]]


def end_the_process(element: int) -> None:
    """Ends the worker as the kernel does when the memory is full."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(element: int) -> None:
    raise ValueError(f"element {element} is bad")


@pytest.mark.integration
def test_a_worker_that_ends_ends_the_job():
    with pytest.raises(WorkerEndedError, match=r"The worker process worker_\d+ has ended") as failed:
        run(end_the_process)
    assert "run fewer processes" in str(failed.value)
    assert running_workers() == []


@pytest.mark.integration
def test_a_worker_that_cannot_start_ends_the_job_and_says_why(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('this Python is broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkerEndedError, match="this Python is broken"):
        run(fail)


@pytest.mark.integration
def test_a_step_that_fails_is_no_worker_that_has_ended():
    with pytest.raises(RuntimeError, match=r"ValueError: element \d is bad") as failed:
        run(fail)
    assert not isinstance(failed.value, WorkerEndedError)
    assert running_workers() == []


class FailOnce:
    """Fails in the first worker that gets to it, and keeps the others busy for longer than a test takes."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, element: int) -> None:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            time.sleep(3600)
        time.sleep(1)  # until the others are busy
        raise ValueError("the first one is bad")


@pytest.mark.integration
def test_a_step_that_fails_ends_the_job_while_others_are_busy(tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: the first one is bad") as failed:
        run(FailOnce(tmp_path / "mark"), workers=3)
    assert not isinstance(failed.value, WorkerEndedError)
    assert running_workers() == []


@pytest.mark.integration
def test_a_python_whose_path_has_a_space(tmp_path, monkeypatch):
    python = tmp_path / "a folder" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert totals(run(Look(tmp_path), workers=1)) == {"looks": 8}


def test_a_worker_reaches_the_runner_behind_a_proxy_and_keeps_the_threads_that_were_chosen(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example.com:3128")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = process_runner.worker_environment()
    assert "127.0.0.1" in environment["no_proxy"].split(",")
    assert environment["OMP_NUM_THREADS"] == "3"


# The command itself


class Job:
    """A batch command in two processes that has work for some seconds.

    Attributes:
      process: the command.
      directory: everything of the job is in it.
    """

    def __init__(self, directory: Path, model_dir: Path) -> None:
        self.directory = directory
        lines = directory / "lines"
        lines.mkdir()
        write_jsonl(lines / "0.jsonl", MessageSource(TransactionGenerator(seed=1)), 2_000)
        for number in range(1, 400):
            (lines / f"{number}.jsonl").hardlink_to(lines / "0.jsonl")
        flags = [f"--input={lines}/*.jsonl", f"--model={model_dir}", f"--output={directory / 'scored'}"]
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "common.anomaly", "batch", *flags, "--processes=2"],
                cwd=ROOT,
                stderr=log,
                start_new_session=True,
            )

    def wait_for(self, what: Callable[[], list[Any]]) -> list[Any]:
        """Waits until there are two of something."""
        while len(items := what()) < 2:
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        return items

    def workers(self) -> list[psutil.Process]:
        """The worker processes that run now."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in family if process.cmdline()[-1:] == [WORKER]]

    def parts(self) -> list[Path]:
        """Files of scores that are being written."""
        return [path for path in self.directory.glob("scored/_temporary/*/scores/*") if path.is_file()]

    def output(self) -> list[Path]:
        """Files that are complete."""
        return [*self.directory.glob("scored/*.parquet")]

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


@pytest.fixture
def job(model_dir, tmp_path) -> Iterator[Job]:
    started = Job(tmp_path, model_dir)
    yield started
    started.process.kill()
    started.process.wait()


@pytest.mark.integration
@pytest.mark.parametrize("scoring", [False, True], ids=["as it starts", "as it scores"])
def test_a_killed_worker_ends_the_command_with_status_1_and_without_output(job, scoring):
    first, second = job.wait_for(job.workers)
    if scoring:
        job.wait_for(job.parts)
    second.kill()
    assert job.process.wait() == 1
    assert "error: The worker process worker_" in job.log
    assert job.output() == []
    assert not first.is_running()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["Ctrl-C", "SIGTERM", "SIGKILL"],
)
def test_workers_end_with_the_command(job, number, status):
    family = [*job.wait_for(job.workers), *psutil.Process(job.process.pid).children()]
    job.wait_for(job.parts)
    job.process.send_signal(number)
    assert job.process.wait() == status
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert job.output() == []
