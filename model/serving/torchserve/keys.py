"""Keys that TorchServe is given, so that several servers behind one address take the same ones."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from common.writing import writing
from model.serving.torchserve.config import Layout, TorchServeError

ENVIRONMENT: Final = "ANOMALY_GIVEN_KEYS"
"""Names the file of the keys to the plugin."""
KINDS: Final = ("inference", "management")
MIN_LENGTH: Final = 16
_KEY: Final = re.compile(rf"[A-Za-z0-9._~+/=-]{{{MIN_LENGTH},512}}")
_SOURCE: Final = Path(__file__).with_name("GivenKeys.java")
_SERVICE: Final = "META-INF/services/org.pytorch.serve.servingsdk.ModelServerEndpoint"
_JDK_HINT: Final = "install it, for example: apt-get install openjdk-17-jdk-headless"


def read_keys(path: Path) -> dict[str, str]:
    """Reads the keys of a file in the form of TorchServe's key_file.json.

    Raises:
      TorchServeError: there is no such file, or a key is missing, too short, or has other characters than a
        header takes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        keys = {kind: content[kind]["key"] for kind in KINDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TorchServeError(
            f"--key_file {path}: expected "
            '{"inference": {"key": "..."}, "management": {"key": "..."}} '
            f"({type(error).__name__}: {error})"
        ) from error
    for kind, key in keys.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            # Without the key itself: errors are logged.
            raise TorchServeError(
                f"--key_file {path}: {kind}: expected a key of {MIN_LENGTH} to 512 letters, digits and "
                "._~+/=-, such as that of openssl rand -hex 16"
            )
    if keys["inference"] == keys["management"]:
        raise TorchServeError(f"--key_file {path}: expected two different keys, got one for both kinds")
    return keys


def install(keys: dict[str, str], layout: Layout) -> Path:
    """Writes the keys and the plugin that gives them to TorchServe into the run directory.

    Returns:
      The folder of the plugin, for `plugins_path`.

    Raises:
      TorchServeError: this machine has no Java compiler.
    """
    home = os.environ.get("JAVA_HOME")
    compiler = shutil.which(str(Path(home, "bin", "javac")) if home else "javac")
    if compiler is None:
        raise TorchServeError(f"--key_file needs the Java compiler, javac of Java 17 or newer; {_JDK_HINT}")
    package = importlib.util.find_spec("ts")
    assert package is not None
    assert package.origin is not None
    server = Path(package.origin).with_name("frontend") / "model-server.jar"
    layout.plugins.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as classes:
        done = subprocess.run(
            [compiler, "-proc:none", "-cp", str(server), "-d", classes, str(_SOURCE)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise TorchServeError(f"--key_file: {_SOURCE.name} does not compile:\n{done.stderr.strip()}")
        archive = layout.plugins / "given-keys.jar"
        with writing(archive, "--run_dir"), zipfile.ZipFile(archive, "w") as jar:
            jar.write(Path(classes, f"{_SOURCE.stem}.class"), f"{_SOURCE.stem}.class")
            jar.writestr(_SERVICE, f"{_SOURCE.stem}\n")
    layout.given_keys.unlink(missing_ok=True)
    content = json.dumps({kind: {"key": key} for kind, key in keys.items()})
    descriptor = os.open(layout.given_keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with writing(layout.given_keys, "--run_dir"), open(descriptor, "w") as file:
        file.write(content)
    return layout.plugins
