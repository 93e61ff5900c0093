"""Directories that hold a model archive alone, as people upload it who have packed it themselves."""

from __future__ import annotations

from pathlib import Path

from model import artifact

ARCHIVE_SUFFIX = ".mar"


def bare_archives(uri: str) -> list[str]:
    """Lists the archives of a directory, local or gs://, that has no manifest; empty where it has one.

    Raises:
      google.api_core.exceptions.GoogleAPIError: the bucket cannot be listed.
    """
    if artifact.is_gcs(uri):
        from google.cloud import storage

        bucket, _, prefix = uri.removeprefix("gs://").rstrip("/").partition("/")
        prefix = prefix and f"{prefix}/"
        blobs = storage.Client().list_blobs(bucket, prefix=prefix, delimiter="/")
        names = [blob.name.removeprefix(prefix) for blob in blobs]
    else:
        names = [path.name for path in Path(uri).iterdir()] if Path(uri).is_dir() else []
    if artifact.MANIFEST_FILE in names:
        return []
    return sorted(name for name in names if name.endswith(ARCHIVE_SUFFIX))
