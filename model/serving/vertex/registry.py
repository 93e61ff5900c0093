"""Models in the registry of Vertex AI: upload with what the container needs, find, delete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from common.google import ERRORS
from common.names import IMAGE, Name
from common.options import OptionError, option
from model import artifact
from model.serving.bare import bare_archives
from model.serving.options import DEFAULT_HEALTH_ROUTE, DEFAULT_PORT, DEFAULT_PREDICT_ROUTE
from model.serving.vertex.session import (
    MANAGED_LABEL,
    VERSION_LABEL,
    Actions,
    VertexError,
    parse_labels,
    version_alias,
)

SERVING_IMAGE: Final = Name(["HOST/PATH", *IMAGE.forms], IMAGE.parts)
"""An image that Vertex AI pulls; without a tag it is `latest`."""
PREBUILT: Final = {"prebuilt-cpu": "cpu", "prebuilt-gpu": "gpu"}
PYTORCH_VERSION: Final = "2.4"
"""The newest PyTorch that Vertex AI has prebuilt containers for; it reads the traced model of a newer one."""
PREBUILT_ARCHIVE: Final = "model.mar"
"""The name by which the prebuilt containers look for an archive."""
DEFAULT_ALIAS: Final = "default"
"""Of the version that a request for the model without a version gets."""
STAGED_LABEL: Final = "staged"
STAGED_ARCHIVE: Final = "archive"
STAGED_ALL: Final = "all"


@dataclass(frozen=True)
class UploadOptions:
    """Options of an upload."""

    model: str = option(metavar="DIR", help="artifact directory, local or gs://")
    image: str = option(
        help="prebuilt-cpu or prebuilt-gpu for Google's TorchServe containers, or the image that "
        "model/serving/cloudbuild.yaml made",
    )
    name: str | None = option(None, help="display name (default: the model's name and -prebuilt or -custom)")
    staging: str | None = option(None, metavar="gs://DIR", help="takes a copy of a local artifact")
    label: tuple[str, ...] = option((), action="append", metavar="KEY=VALUE", help="may be repeated")

    def __post_init__(self) -> None:
        problem = "" if self.image in PREBUILT else SERVING_IMAGE.problem(self.image)
        if problem:
            raise OptionError(f"--image: {problem}; or pass prebuilt-cpu or prebuilt-gpu")
        if not artifact.is_gcs(self.model) and not artifact.is_gcs(self.staging or ""):
            raise OptionError(
                f"--staging: expected gs://BUCKET/DIR for a copy of the local directory {self.model}"
            )
        parse_labels(self.label)


def upload(aiplatform: Any, options: UploadOptions, region: str, actions: Actions) -> Any:
    """Registers a version of the model, unless it is registered.

    Returns:
      The SDK's Model, or None in a dry run.

    Raises:
      ArtifactError: the artifact is damaged.
      VertexError: the artifact has no archive, or is nothing else; or the version is registered with another
        image.
    """
    archives = bare_archives(options.model)
    if archives:
        raise VertexError(
            f"--model {options.model}: has {archives[0]} and no {artifact.MANIFEST_FILE}, which names "
            "version, thresholds and checksums. Pass the directory of anomaly train; or register the archive "
            "as it is, without them, with model.mar as its name: gcloud ai models upload --region=REGION "
            "--display-name=NAME --artifact-uri=gs://DIR --container-image-uri=IMAGE"
        )
    source = artifact.read(options.model, copied=True)
    manifest = source.manifest
    prebuilt = options.image in PREBUILT
    if prebuilt and artifact.ARCHIVE_FILE not in manifest.files:
        raise VertexError(
            f"--model {options.model}: the prebuilt container needs {artifact.ARCHIVE_FILE}; install "
            "torch-model-archiver and train again"
        )
    image = options.image
    if prebuilt:
        image = aiplatform.helpers.get_prebuilt_prediction_container_uri(
            "pytorch", PYTORCH_VERSION, region=region, accelerator=PREBUILT[options.image]
        )
    name = options.name or f"{manifest.model_name}-{'prebuilt' if prebuilt else 'custom'}"
    alias = version_alias(manifest.model_version)
    parent = find_model(aiplatform, name)
    if parent is not None and alias in versions(parent):
        known = aiplatform.Model(parent.resource_name, version=alias)
        if known.container_spec.image_uri != image:
            raise VertexError(
                f"{name} has version {manifest.model_version} already, with image "
                f"{known.container_spec.image_uri}; pass another --name, or delete it"
            )
        return known
    uri, staged = _stage(source, options.staging, prebuilt, actions)
    # One on Cloud Storage may be of a version that wrote none.
    has_schema = staged == STAGED_ALL or artifact.SCHEMA_FILE in manifest.files
    routes: dict[str, Any] = {}
    if not prebuilt:
        routes = {
            "serving_container_predict_route": DEFAULT_PREDICT_ROUTE,
            "serving_container_health_route": DEFAULT_HEALTH_ROUTE,
            "serving_container_ports": [DEFAULT_PORT],
        }
    labels = {
        **(parse_labels(options.label)),
        **dict([MANAGED_LABEL]),
        VERSION_LABEL: alias[:63],
        **({STAGED_LABEL: staged} if staged else {}),
    }
    return actions.do(
        "aiplatform.Model.upload",
        aiplatform.Model.upload,
        display_name=name,
        parent_model=parent and parent.resource_name,
        artifact_uri=uri,
        serving_container_image_uri=image,
        version_aliases=[alias],
        version_description=manifest.model_version,
        instance_schema_uri=f"{uri}/{artifact.SCHEMA_FILE}" if has_schema else None,
        labels=labels,
        **routes,
    )


def find_model(aiplatform: Any, name: str) -> Any:
    """Finds the registered model of this display name; None when there is none.

    Raises:
      VertexError: there are several.
    """
    matches = aiplatform.Model.list(filter=f'display_name="{name}"')
    if len(matches) > 1:
        raise VertexError(
            f"{len(matches)} models are called {name}: {', '.join(m.resource_name for m in matches)}"
        )
    return matches[0] if matches else None


def versions(model: Any) -> dict[str, Any]:
    """Lists the versions of a model by alias, `version_alias` of the artifact's version among them."""
    return {
        alias: info for info in model.versioning_registry.list_versions() for alias in info.version_aliases
    }


def find_version(aiplatform: Any, name: str, model_version: str | None) -> Any:
    """Finds a version of a model; the default one when `model_version` is None.

    Raises:
      VertexError: no such model or version.
    """
    model = find_model(aiplatform, name)
    if model is None:
        raise VertexError(f"--name {name}: no such model; upload it first")
    if model_version is None:
        return model
    known = versions(model)
    alias = version_alias(model_version)
    if alias not in known:
        described = sorted({info.version_description for info in known.values()})
        raise VertexError(f"{name} has no version {model_version}; it has {', '.join(described)}")
    return aiplatform.Model(model.resource_name, version=alias)


def describe(aiplatform: Any) -> list[dict[str, Any]]:
    """Makes a row for each version of each model of the registry, the newest last."""
    rows = []
    for model in sorted(aiplatform.Model.list(), key=lambda model: str(model.display_name)):
        for info in model.versioning_registry.list_versions():
            version = aiplatform.Model(model.resource_name, version=info.version_id)
            aliases = [alias for alias in info.version_aliases if alias != DEFAULT_ALIAS]
            rows.append(
                {
                    "name": model.display_name,
                    "version": info.version_description,
                    "id": info.version_id,
                    "aliases": " ".join(sorted(aliases)),
                    "default": DEFAULT_ALIAS in info.version_aliases,
                    "created": info.version_create_time,
                    "image": version.container_spec.image_uri if version.container_spec else None,
                    "artifact": version.uri,
                    "resource": model.resource_name,
                }
            )
    return rows


def delete_model(aiplatform: Any, name: str, actions: Actions) -> bool:
    """Deletes a model, its versions, and its files that `upload` copied; False when there is none.

    Files that another model of the registry was uploaded from stay, and go with that one.

    Raises:
      VertexError: the model is gone, and its files could not be deleted; or in a dry run, not be listed.
    """
    model = find_model(aiplatform, name)
    if model is None:
        return False
    staged = _artifacts(aiplatform, model)
    actions.do(f"{model.resource_name}: delete", lambda: model.delete())
    others = _artifacts_of_others(aiplatform, model) if any(kind for _, kind in staged) else []
    left: list[str] = []
    for uri, kind in dict.fromkeys(staged):
        # Of those that use the same directory only prebuilt containers, whose versions are staged, need the
        # copy of the archive.
        needed = any(other == uri and (kind == STAGED_ALL or label) for other, label in others)
        if kind and not needed:
            prefix = uri.rstrip("/") + "/" + (PREBUILT_ARCHIVE if kind == STAGED_ARCHIVE else "")
            try:
                actions.do(f"{prefix}: delete objects", _delete_objects, objects=_objects(prefix))
            except ERRORS as error:
                if actions.dry_run:
                    raise VertexError(f"{prefix}: its objects cannot be listed: {error}") from error
                left.append(f"{prefix}: {error}; run gcloud storage rm --recursive {prefix}")
    if left:
        # Another run would not find them.
        raise VertexError("the model is deleted, and these of its files are not: " + ". ".join(left))
    return True


def _stage(
    source: artifact.Artifact, staging: str | None, prebuilt: bool, actions: Actions
) -> tuple[str, str | None]:
    """Copies the artifact to Cloud Storage where needed; its URI, and the value of STAGED_LABEL."""
    uri, staged = source.uri.rstrip("/"), None
    if not artifact.is_gcs(uri):
        assert staging is not None, "checked with the options"
        manifest = source.manifest
        uri = f"{staging.rstrip('/')}/{manifest.model_name}/{manifest.model_version}"
        files = [source.local_dir / name for name in manifest.files]
        target, schema = uri, artifact.SCHEMA_FILE
        actions.do(
            f"{uri}: write artifact",
            lambda **_: artifact.write(target, manifest, files),
            objects=[f"{uri}/{name}" for name in (*{**manifest.files, schema: ""}, artifact.MANIFEST_FILE)],
        )
        staged = STAGED_ALL
    if prebuilt:
        archive = str(source.local_dir / artifact.ARCHIVE_FILE)
        blob = f"{uri}/{PREBUILT_ARCHIVE}"
        actions.do(f"{blob}: upload", lambda source: _blob(blob).upload_from_filename(source), source=archive)
        staged = staged or STAGED_ARCHIVE
    return uri, staged


def _artifacts(aiplatform: Any, model: Any) -> list[tuple[str, str | None]]:
    """Lists the artifact directory of each version of a model, and its STAGED_LABEL, if any."""
    versions = [
        aiplatform.Model(model.resource_name, version=info.version_id)
        for info in model.versioning_registry.list_versions()
    ]
    return [(version.uri, dict(version.labels).get(STAGED_LABEL)) for version in versions]


def _artifacts_of_others(aiplatform: Any, model: Any) -> list[tuple[str, str | None]]:
    label, value = MANAGED_LABEL
    others = aiplatform.Model.list(filter=f'labels.{label}="{value}"')
    return [
        entry
        for other in others
        if other.resource_name != model.resource_name
        for entry in _artifacts(aiplatform, other)
    ]


def _blob(uri: str) -> Any:
    from google.cloud import storage

    bucket, _, name = uri.removeprefix("gs://").partition("/")
    return storage.Client().bucket(bucket).blob(name)


def _objects(prefix: str) -> list[str]:
    """Lists the URI of one object if it exists, or with a slash at the end those of all below."""
    from google.cloud import storage

    bucket, _, name = prefix.removeprefix("gs://").partition("/")
    return [
        f"gs://{bucket}/{blob.name}"
        for blob in storage.Client().list_blobs(bucket, prefix=name)
        if blob.name == name or name.endswith("/")
    ]


def _delete_objects(objects: list[str]) -> None:
    for uri in objects:
        _blob(uri).delete()
