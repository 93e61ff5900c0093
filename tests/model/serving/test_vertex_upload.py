"""Uploading to Vertex AI's registry and deleting from it, by what the real SDK sends over the wire."""

from __future__ import annotations

import pytest
import yaml
from google.api_core.exceptions import Forbidden
from google.cloud import storage

from features.default import ULB
from features.schema import openapi_3_0
from model.artifact import read, write
from tests.model.serving.artifacts import VERSION
from tests.model.serving.vertex_cases import CUSTOM, NEWER, PARENT, PREBUILT

pytest_plugins = ("tests.model.serving.fixtures", "tests.model.serving.vertex_fixtures")
pytestmark = pytest.mark.integration


def test_a_local_artifact_is_staged_for_the_prebuilt_container_and_registered(run, vertex, served_artifact):
    vertex.slow = True
    flags = [
        "--model",
        served_artifact.uri,
        "--image",
        "prebuilt-cpu",
        "--staging",
        "gs://b/m",
        "--label",
        "a=b",
    ]
    code, out, err = run("upload", *flags)
    assert code == 0, err
    ((method, path, body),) = vertex.calls
    assert (method, path) == ("POST", f"{PARENT}/models:upload")
    uri = f"gs://b/m/pytorch_autoencoder/{VERSION}"
    assert body == {
        "model": {
            "displayName": "pytorch_autoencoder-prebuilt",
            "containerSpec": {"imageUri": PREBUILT},
            "artifactUri": uri,
            "predictSchemata": {"instanceSchemaUri": f"{uri}/instance_schema.yaml"},
            "versionAliases": ["v-20260101-120000", "default"],
            "versionDescription": VERSION,
            "labels": {
                "a": "b",
                "managed-by": "beam-transaction-anomaly",
                "model-version": "v-20260101-120000",
                "staged": "all",
            },
        }
    }
    assert len(vertex.polls) == 1
    assert vertex.polls[0].startswith("/ui/projects/p/locations/us-central1/operations/")
    assert (
        vertex.storage.objects["b", f"m/pytorch_autoencoder/{VERSION}/model.mar"].data
        == (served_artifact.local_dir / "pytorch_autoencoder.mar").read_bytes()
    )
    assert read(uri).manifest.model_version == VERSION
    schema = vertex.storage.objects["b", f"m/pytorch_autoencoder/{VERSION}/instance_schema.yaml"].data
    assert yaml.safe_load(schema) == openapi_3_0(ULB)
    assert f"pytorch_autoencoder-prebuilt {VERSION}: projects/p/" in out

    code, again, _ = run("upload", *flags)
    assert (code, again, len(vertex.calls)) == (0, out, 1)


def test_an_artifact_on_cloud_storage_is_used_where_it_is(run, vertex, served_artifact):
    files = [served_artifact.local_dir / name for name in served_artifact.manifest.files]
    write("gs://b/trained", served_artifact.manifest, files)
    code, _, err = run("upload", "--model", "gs://b/trained", "--image", CUSTOM)
    assert code == 0, err
    spec = vertex.calls[0][2]["model"]
    assert spec["artifactUri"] == "gs://b/trained"
    assert spec["displayName"] == "pytorch_autoencoder-custom"
    assert spec["containerSpec"] == {
        "imageUri": CUSTOM,
        "predictRoute": "/predict",
        "healthRoute": "/health",
        "ports": [{"containerPort": 8080}],
    }
    code, _, err = run("upload", "--model", "gs://b/trained", "--image", "prebuilt-gpu")
    assert code == 0, err
    assert vertex.calls[1][2]["model"]["containerSpec"]["imageUri"] == PREBUILT.replace("cpu", "gpu")
    assert "trained/model.mar" in vertex.storage.names("b")
    # What upload put there goes; the artifact, which it did not, stays.
    assert run("delete", "--name", "pytorch_autoencoder-prebuilt")[0] == 0
    assert run("delete", "--name", "pytorch_autoencoder-custom")[0] == 0
    assert vertex.storage.names("b") == [
        "trained/final_model_traced.pt",
        "trained/instance_schema.yaml",
        "trained/manifest.json",
        "trained/pytorch_autoencoder.mar",
    ]


@pytest.mark.parametrize("image", [CUSTOM, "prebuilt-gpu"])
@pytest.mark.parametrize("first", ["one", "two"])
def test_files_that_another_model_was_uploaded_from_stay_until_that_goes(
    run, vertex, served_artifact, image, first
):
    common = ["--model", served_artifact.uri, "--staging", "gs://b/m"]
    for name, of in (("one", "prebuilt-cpu"), ("two", image)):
        code, _, err = run("upload", *common, "--image", of, "--name", name)
        assert code == 0, err
    before = vertex.storage.names("b")
    assert run("delete", "--name", first)[0] == 0
    assert vertex.storage.names("b") == before
    assert run("delete", "--name", "two" if first == "one" else "one")[0] == 0
    assert vertex.storage.names("b") == []


def test_files_that_cannot_be_deleted_are_named_since_the_model_is_gone(uploaded, run, vertex, monkeypatch):
    def refuse(*_, **__):
        raise Forbidden("storage.objects.list denied")

    monkeypatch.setattr(storage.Client, "list_blobs", refuse)
    code, _, err = run("delete", "--name", "m", "--dry_run")
    assert code == 1
    assert "its objects cannot be listed" in err
    assert "m" in {versions[0]["displayName"] for versions in vertex.models.values()}
    code, _, err = run("delete", "--name", "m")
    assert code == 1
    assert vertex.models == {}
    for version in (VERSION, NEWER):
        assert f"gcloud storage rm --recursive gs://b/m/pytorch_autoencoder/{version}/" in err


def test_another_version_goes_under_the_same_model(uploaded, vertex):
    ((name, versions),) = vertex.models.items()
    assert [version["versionDescription"] for version in versions] == [VERSION, NEWER]
    assert versions[-1]["name"] == name
    assert "default" in versions[-1]["versionAliases"]


def test_the_same_version_with_another_image_is_refused(uploaded, run, vertex, served_artifact):
    other = CUSTOM.replace(":1", ":2")
    flags = ["--model", served_artifact.uri, "--image", other, "--name", "m", "--staging", "gs://b/m"]
    code, _, err = run("upload", *flags)
    assert code == 1
    assert f"m has version {VERSION} already, with image {CUSTOM}" in err
    assert vertex.calls == []


UNTAGGED = CUSTOM.removesuffix(":1")


def test_an_image_without_a_tag_is_taken(run, vertex, served_artifact):
    flags = ["--model", served_artifact.uri, "--staging", "gs://b/m", "--name", "m"]
    code, _, err = run("upload", *flags, "--image", UNTAGGED)
    assert code == 0, err
    assert vertex.calls[0][2]["model"]["containerSpec"]["imageUri"] == UNTAGGED
    code, _, err = run("upload", *flags, "--image", f"{UNTAGGED}:")
    assert code == 2
    assert "TAG '' has 0 characters" in err


@pytest.mark.parametrize("place", ["gs://b/notebook", "local"])
@pytest.mark.parametrize("image", ["prebuilt-cpu", CUSTOM])
def test_an_archive_alone_gets_another_answer_than_no_model(
    run, vertex, served_artifact, tmp_path, place, image
):
    archive = served_artifact.local_dir / "pytorch_autoencoder.mar"
    if place == "local":
        place = str(tmp_path)
        (tmp_path / "model.mar").write_bytes(archive.read_bytes())
    else:
        storage.Client().bucket("b").blob("notebook/model.mar").upload_from_filename(archive)
    code, _, err = run("upload", "--model", place, "--image", image, "--staging", "gs://b/m")
    assert code == 1
    assert f"--model {place}: has model.mar and no manifest.json" in err
    assert "gcloud ai models upload" in err
    assert "train a model" not in err
    assert vertex.calls == []
