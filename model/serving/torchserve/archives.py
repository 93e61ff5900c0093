"""Copies model archives into the model store."""

from __future__ import annotations

import shutil
from pathlib import Path

from common.writing import writing
from model import artifact
from model.serving.bare import ARCHIVE_SUFFIX, bare_archives
from model.serving.torchserve.config import Layout, TorchServeError


def add_archive(source: str, layout: Layout) -> str:
    """Copies an archive into the model store.

    Args:
      source: an artifact directory, local or gs://, whose files are verified first; or a .mar file.
      layout: of the server.

    Returns:
      The file name in the model store; the name and version of an artifact are in it, so that versions lie
      beside each other.

    Raises:
      TorchServeError: there is no such file, or the artifact has no archive.
      ArtifactError: the artifact is damaged.
    """
    if source.endswith(ARCHIVE_SUFFIX) and not artifact.is_gcs(source):
        path = Path(source)
        name = path.name
    else:
        archives = bare_archives(source)
        if archives:
            place = f"{source.rstrip('/')}/{archives[0]}"
            raise TorchServeError(
                f"--model {source}: has {archives[0]} and no {artifact.MANIFEST_FILE} with its checksum; "
                + (
                    f"copy the archive to this machine and pass it: gcloud storage cp {place} ."
                    if artifact.is_gcs(source)
                    else f"pass the archive itself, unchecked: --model {place}"
                )
            )
        packed = artifact.read(source, copied=True)
        path = packed.local_dir / artifact.ARCHIVE_FILE
        if artifact.ARCHIVE_FILE not in packed.manifest.files:
            raise TorchServeError(
                f"{source}: the artifact has no {artifact.ARCHIVE_FILE}; install torch-model-archiver and "
                "train it again"
            )
        name = f"{packed.manifest.model_name}-{packed.manifest.model_version}.mar"
    if not path.is_file():
        raise TorchServeError(f"{source}: no such archive")
    target = layout.model_store / name
    if not (target.exists() and target.samefile(path)):
        with writing(target, "--run_dir"):
            shutil.copyfile(path, target)
    return name
