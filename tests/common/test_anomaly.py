"""The installed command: it lists every command, starts without their imports, and hands them their words."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from common import anomaly

ENTRIES = {name: entry for group in anomaly.COMMANDS.values() for name, entry in group.items()}


def test_help_lists_every_command_in_its_group(capsys):
    assert anomaly.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [line[:-1] for line in shown.splitlines() if line.endswith(":")] == list(anomaly.COMMANDS)
    for name, entry in ENTRIES.items():
        assert f"  {name}" in shown
        assert entry.line in shown


def test_help_imports_no_command():
    lines = "import sys; from common.anomaly import main; main(['--help']); print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines())
    assert "common.anomaly" in loaded
    assert not loaded & {"apache_beam", "torch", "pyarrow", "numpy", "google.api_core", "rich"}


@pytest.mark.parametrize(
    ("words", "hint"), [(["qeury"], "did you mean query?"), (["x"], "lists the commands")]
)
def test_an_unknown_command_is_a_wrong_option(words, hint, capsys):
    assert anomaly.main(words) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: expected a command, got {words[0]!r}: ")
    assert hint in shown


@pytest.mark.parametrize("name", ENTRIES)
def test_every_command_has_help_with_an_example(name, capsys):
    module = importlib.import_module(ENTRIES[name].module)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert shown.startswith(f"usage: anomaly {name} ")
    assert f"  anomaly {name}" in shown.partition("examples:")[2]


def test_a_shell_that_points_to_a_stopped_stack_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone"))
    assert anomaly.main(["query", "list"]) == 0
    assert "unset GOOGLE_APPLICATION_CREDENTIALS" in capsys.readouterr().err
    assert anomaly.main(["local", "status", "--state_dir", str(tmp_path)]) == 3
    assert "unset" not in capsys.readouterr().err
