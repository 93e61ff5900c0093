"""The commands of the README and of the pages that it leads to."""

import contextlib
import functools
import importlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = "<!-- these commands are run by tests/test_readme.py -->\n"
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def commands(text):
    """The commands of the bash blocks, continuation lines joined, comments left out."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.strip()
            if command and not command.startswith("#"):
                yield command


ALL = [(page.name, command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]
MODULES = [(page, command) for page, command in ALL if "python -m " in command]


@pytest.mark.parametrize(
    ("page", "command"), MODULES, ids=[f"{page}-{i}" for i, (page, _) in enumerate(MODULES)]
)
def test_every_module_and_flag_exists(page, command):
    words = shlex.split(command.split("python -m ", 1)[1].rstrip(')"'), comments=True)
    module = words[0]
    assert importlib.util.find_spec(module) is not None, f"{page}: no module {module}"
    flags = {word.split("=", 1)[0] for word in words[1:] if word.startswith("--")}
    if not flags or module == "pytest":
        return
    positional = [word for word in words[1:] if not word.startswith("-")][:1]
    known = help_of(module) + "".join(help_of(module, word) for word in positional)
    if module in ("cloud.launch", "cloud.preflight"):  # they hand on the options of the pipeline
        known += "".join(
            help_of(f"pipelines.{word}") for word in positional if word in ("batch", "streaming")
        )
    of_beam = {"--runner", "--project", "--region", "--temp_location"}
    missing = [flag for flag in flags - of_beam if flag not in known]
    assert not missing, f"{page}: {module} has no {', '.join(missing)}"


@functools.cache
def help_of(module, *words):
    """What `python -m module words --help` prints; in this process, where Beam and torch are loaded once."""
    said = io.StringIO()
    argv = sys.argv
    sys.argv = [module, *words, "--help"]
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings(action="ignore"):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return said.getvalue() if ended.code in (0, None) else ""
    finally:
        sys.argv = argv
    return said.getvalue()


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.integration
def test_the_marked_commands_run_as_written(local_stack, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = text.split(RUN)[1:]
    assert len(blocks) == 2
    # What is left in the background would keep the output open, and this test waiting.
    trap = "trap 'kill $(jobs -p) 2>/dev/null || true; anomaly local down' EXIT"
    script = f"set -euo pipefail\n{trap}\n" + "".join(BLOCK.search(part).group(1) for part in blocks)
    (runtime := tmp_path / "runtime").mkdir(mode=0o700)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(runtime),  # or `down` would stop a stack that somebody works with
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "out" / "scored").glob("scores-*.parquet"))
    # On a busy machine the query may come before the first row.
    assert "contribution_1" in done.stdout or "No rows" in done.stdout, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
