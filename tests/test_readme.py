"""The commands of the README and of the pages that it leads to."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import anomaly
from tests.pages import run_commands

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "RESULTS.md",
    ROOT / "examples" / "cards" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
RUN = "<!-- these commands are run by tests/test_readme.py -->\n"
BLOCK = re.compile(r"^ *```(?:bash|sh)\b[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
ENTRIES = {name: entry.module for group in anomaly.COMMANDS.values() for name, entry in group.items()}
OF_BEAM = {"--runner", "--project", "--region", "--temp_location"}
"""Flags that a pipeline leaves to Beam, and that its help does not list."""


def commands(text: str) -> Iterator[str]:
    """The commands of shell blocks, continuation lines joined, and those in backticks, without comments."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield re.sub(r"(^|\s)#\s.*", "", line).strip()
    yield from INLINE.findall(BLOCK.sub("", text))


def calls(name: str) -> list[tuple[str, str]]:
    """Page and arguments of every call of a program in a page."""
    call = re.compile(rf"(?:^|\$\(|&& ){name} ([^|&>)]+)")
    return [
        (page, match[1].rstrip())
        for page, text in TEXTS.items()
        for command in commands(text)
        if (match := call.search(command)) and "COMMAND" not in match[1]
    ]


@pytest.mark.parametrize(("page", "arguments"), calls("anomaly"))
def test_every_command_and_flag_exists(page: str, arguments: str):
    name, *words = shlex.split(arguments)
    assert name in ENTRIES or name == "--help", f"{page}: there is no `anomaly {name}`"
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    known = flags_of(name)
    if words and not words[0].startswith("-"):
        assert re.search(rf"\b{re.escape(words[0])}\b", help_of(name)), f"{page}: {name} has no {words[0]}"
        known |= flags_of(name, words[0])
        if name in ("launch", "preflight"):  # they pass the options of the pipeline on
            known |= flags_of(words[0]) if words[0] in ENTRIES else set()
    if name in ("batch", "streaming"):
        known |= OF_BEAM
    assert flags - known == set(), f"{page}: anomaly {arguments}"


def flags_of(*words: str) -> set[str]:
    """The flags that a command's help lists."""
    return set(re.findall(r"--[a-z_0-9-]+", help_of(*words)))


@functools.cache
def help_of(name: str, *words: str) -> str:
    """The output of --help, made in this process, where Beam and torch are loaded once."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        anomaly.main([name, *words, "--help"] if name != "--help" else [name])
    assert output.getvalue().startswith("usage: anomaly"), (name, *words)
    return output.getvalue()


@pytest.mark.parametrize(("page", "arguments"), calls("python -m"))
def test_every_module_exists(page: str, arguments: str):
    module = arguments.split()[0]
    assert importlib.util.find_spec(module) is not None, f"{page}: no module {module}"
    assert module not in ENTRIES.values(), f"{page}: python -m {module} is an `anomaly` command"


def test_files_and_modules_exist():
    rooms = "|".join({module.partition(".")[0] for module in ENTRIES.values()} | {"benchmarks", "tests"})
    rooms += "|common|transforms"
    for page, text in TEXTS.items():
        for name in re.findall(rf"`((?:{rooms})/[\w./-]*)`", text):
            assert (ROOT / name).exists(), f"{page}: {name}"
        for name in re.findall(rf"[`=]((?:{rooms})\.(?!onnx|pt2|mar\b)[a-z_0-9]+)", text):
            assert importlib.util.find_spec(name) is not None, f"{page}: {name}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[str(page.relative_to(ROOT))]):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.integration
def test_the_marked_commands_run_as_written(local_stack, tmp_path):
    blocks = TEXTS["README.md"].split(RUN)[1:]
    assert len(blocks) == 2
    script = "".join(BLOCK.search(part).group(1) for part in blocks)
    # Seconds are enough on an idle machine; here the rows count, so wait until one is there.
    rows = "$(anomaly query top_anomalies --dataset local-project.anomaly --limit 1 --format json)"
    wait = f'for i in {{1..60}}; do rows={rows}; [ "$rows" = "[]" ] || break; sleep 1; done\n'
    assert script.count("sleep 10\n") == 1
    script = script.replace("sleep 10\n", wait)
    # A process that stays in the background would keep the output open, and this test waiting.
    end = "kill $(jobs -p) 2>/dev/null || true; anomaly local down"
    done = run_commands(script, tmp_path, end)
    assert list((tmp_path / "out" / "scored").glob("scores-*.parquet"))
    assert "contribution_1" in done.stdout, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
