"""Addresses, processes and waits that the tests of the local stack share."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from local import bigquery as local_bigquery

ROOT = Path(__file__).resolve().parents[2]


needs_bigquery = pytest.mark.skipif(bool(local_bigquery.missing()), reason=" ".join(local_bigquery.missing()))


def until(condition, timeout=30):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def listens(address):
    host, port = address.removeprefix("http://").split(":")
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) == 0


def is_alive(pid):
    """Tests for a process that runs; one that has ended and waits for its parent to notice does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def python(program, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)


def local(*arguments, state_dir, environment=None):
    """`anomaly local` with these arguments; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "local", *arguments, f"--state_dir={state_dir}"],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
