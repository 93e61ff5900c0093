"""Every entry point ends quietly when its output is cut: help and results into a pipe that nobody reads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INTERNAL = {"local.guardian", "local.bqemulator_launcher", "benchmarks.stream_pipeline"}
"""Started by the local stack or a benchmark alone, which holds their output or gives them a log file."""


def runs(path: Path) -> bool:
    """Tells whether a module has an `if __name__ == "__main__"`."""
    tests = (node.test for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def modules() -> list[str]:
    """Every module that can be run."""
    files = [path for room in ROOT.glob("*/__init__.py") for path in room.parent.rglob("*.py")]
    names = (path.relative_to(ROOT).with_suffix("") for path in files if runs(path))
    return sorted(
        ".".join(name.parts).removesuffix(".__main__") for name in names if name.parts[0] != "tests"
    )


WAYS = [*(("-m", name) for name in modules() if name not in INTERNAL), ("-m", "common.anomaly", "query")]


def run_cut(*words: str, **variables: str) -> tuple[int, str]:
    """The status and the standard error of a command whose standard output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    unset = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**unset, **variables},
        cwd=ROOT,
        text=True,
        check=False,
    )
    os.close(writer)
    return done.returncode, done.stderr


def test_there_are_entry_points_to_try():
    assert {"common.anomaly", "pipelines.streaming", "templates.main", "benchmarks.pipeline"} <= {*modules()}
    assert {*modules()} >= INTERNAL


@pytest.mark.integration
@pytest.mark.parametrize("words", WAYS, ids=lambda words: " ".join(words[1:]))
def test_help_that_nobody_reads(words):
    assert run_cut(*words, "--help") == (141, "")


@pytest.mark.integration
@pytest.mark.parametrize("variables", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "words",
    [
        ("query", "list"),
        ("query", "top_anomalies", "--dataset=my-project.anomaly", "--show_sql"),
        ("local", "status"),
        ("local", "status", "--format=json"),
    ],
    ids=" ".join,
)
def test_a_result_that_nobody_reads(words, variables, tmp_path):
    where = [f"--state_dir={tmp_path}"] if words[0] == "local" else []
    status, error = run_cut("-m", "common.anomaly", *words, *where, **variables)
    assert status == 141
    assert "Traceback" not in error
    assert "Broken" not in error
