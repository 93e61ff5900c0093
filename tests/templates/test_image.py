"""The image: locked requirements, versions that agree, and files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import apache_beam
import pytest
import yaml
from apache_beam.runners.dataflow.internal.names import DATAFLOW_CONTAINER_IMAGE_REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from templates import lock

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "templates" / "Dockerfile").read_text()
_REQUIREMENT = re.compile(
    r"^([A-Za-z0-9._-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE
)
LOCKED = {
    canonicalize_name(name): version for name, version, _ in _REQUIREMENT.findall(lock.OUTPUT.read_text())
}


def pinned(python: str = lock.PYTHON) -> dict[str, str]:
    """The pins of constraints.txt that hold on a version of Python, the image's by default."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    holding = [pin for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": python})]
    names = [canonicalize_name(pin.name) for pin in holding]
    assert len(set(names)) == len(names), "a package is pinned twice"
    return {name: str(pin.specifier).removeprefix("==") for name, pin in zip(names, holding, strict=True)}


def test_launcher_worker_and_tests_have_the_same_beam():
    in_docker = re.search(r"^ARG BEAM_VERSION=(\S+)$", DOCKERFILE, re.M)
    assert in_docker
    assert in_docker[1] == LOCKED["apache-beam"] == pinned()["apache-beam"] == apache_beam.__version__
    # The image that Beam's runner would take without one of ours.
    repository = DATAFLOW_CONTAINER_IMAGE_REPOSITORY
    assert f"FROM {repository}/beam_python${{PYTHON_VERSION}}_sdk:${{BEAM_VERSION}} AS" in DOCKERFILE


def test_python_of_the_image_is_the_one_that_was_locked_for():
    in_docker = re.search(r"^ARG PYTHON_VERSION=(\S+)$", DOCKERFILE, re.M)
    assert in_docker
    assert in_docker[1] == lock.PYTHON
    assert f"python{lock.PYTHON.replace('.', '')}-template-launcher-base" in DOCKERFILE


@pytest.mark.parametrize(
    "name", ["templates/Dockerfile", "model/serving/Dockerfile", "model/serving/torchserve/Dockerfile"]
)
def test_base_images_are_fixed_and_come_from_googles_registries(name):
    text = (ROOT / name).read_text()
    images = re.findall(r"^FROM (\S+)", text, re.M)
    assert images
    for image in images:
        host, _, path = image.partition("/")
        assert host in ("gcr.io", "mirror.gcr.io"), image
        version = path.partition("@")[2] or path.partition(":")[2]
        assert version not in ("", "latest"), image
    assert re.findall(r"^ARG LAUNCHER_DIGEST=(.*)$", text, re.M) == re.findall(r"sha256:[0-9a-f]{64}", text)


def test_every_requirement_has_a_hash_and_the_version_that_the_tests_run_with():
    text = lock.OUTPUT.read_text()
    assert len(LOCKED) == len(re.findall(r"^[A-Za-z0-9][^\n]*==", text, re.M)) > 100
    versions = pinned()
    differing = {
        name: (version, versions.get(name))
        for name, version in LOCKED.items()
        if name not in ("torch", "setuptools") and version != versions.get(name)
    }
    assert differing == {}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_each_python_has_one_pin_a_package(python):
    assert pinned(python).keys() == pinned().keys()


def test_torch_is_the_build_without_cuda():
    assert LOCKED["torch"] == f"{lock.torch_version()}+cpu"
    assert not [name for name in LOCKED if "nvidia" in name or "cuda" in name or name == "triton"]
    assert f"--extra-index-url {lock.TORCH_INDEX}" in lock.OUTPUT.read_text()


def test_what_setup_py_requires_is_locked():
    block = (ROOT / "setup.py").read_text().partition("install_requires=[")[2].partition("]\n")[0]
    block = block.partition("extras_require")[0]
    required = {canonicalize_name(name) for name in re.findall(r'"([A-Za-z0-9_-]+)(?:\[gcp)?', block)}
    assert required >= {"apache-beam", "torch", "msgspec", "jsonschema"}
    assert required - set(LOCKED) == set()


@pytest.mark.parametrize("line", re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M))
def test_what_the_dockerfile_copies_is_there(line):
    for source in line.split()[:-1]:
        assert (ROOT / source).exists(), source


def test_cloud_build_makes_and_pushes_this_image():
    config = yaml.safe_load((ROOT / "templates" / "cloudbuild.yaml").read_text())
    arguments = config["steps"][0]["args"]
    assert "--file=templates/Dockerfile" in arguments
    assert "--tag=${_IMAGE}" in arguments
    assert config["images"] == ["${_IMAGE}"]


def test_the_image_checks_itself_while_it_is_built():
    for command in (
        "--require-hashes",
        "pip check",
        "apache_beam.__version__ !=",
        "torch.version.cuda is not None",
    ):
        assert command in DOCKERFILE
    assert re.search(r"^ENTRYPOINT \[\"/opt/apache/beam/boot\"\]$", DOCKERFILE, re.M)
    assert "ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/main.py" in DOCKERFILE
