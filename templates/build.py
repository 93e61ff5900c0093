"""Builds the image and the two Flex templates, and uploads their specs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud.resources.base import Clients
from cloud.resources.declared import Names
from cloud.resources.gcloud import Gcloud
from common import google
from common.command import CommandError, Parser, command
from common.names import PROJECT
from common.options import OptionError, add_options, group, option, read_options
from common.writing import write_text, writing
from templates import metadata, spec
from templates.image import ROOT, ImageOptions, build_image

EXAMPLES: Final = """
  anomaly templates --project my-project --region europe-west1
  anomaly templates --project my-project --tag v7 --no_image
  anomaly templates --project my-project --build_region global --build_machine e2-highcpu-32
  anomaly templates --project my-project --offline out/templates
"""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The options of this command."""

    project: str = option(type=PROJECT, help="Google Cloud project id. Example: my-project")
    region: str = option("us-central1", help="default: %(default)s")
    bucket: str = option("", help="bucket without gs:// (default: PREFIX + PROJECT-anomaly)")
    prefix: str = option("", help="the --prefix of `anomaly resources`. Example: staging-")
    tag: str | None = option(None, help="of the image (default: the commit of this checkout, or latest)")
    image: str | None = option(
        None, help="another image, with its tag (default: one in the project's repository)"
    )
    no_image: bool = option(False, action="store_true", help="do not have Cloud Build make the image first")
    builder: ImageOptions = group("the build of the image")
    offline: Path | None = option(
        None, type=Path, metavar="DIR", help="write the specs to DIR alone: no image, no upload"
    )


def default_tag() -> str:
    """Reads the commit of this checkout, shortened; "latest" outside of a checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "latest"
    return done.stdout.strip() or "latest"


def write(directory: Path, names: Names, image: str) -> list[Path]:
    """Writes PIPELINE.json for each pipeline into a directory, and makes the directory if it is missing."""
    with writing(directory, "--offline"):
        directory.mkdir(parents=True, exist_ok=True)
    files = []
    for pipeline in metadata.PARSERS:
        file = directory / f"{pipeline}.json"
        write_text(file, spec.text(pipeline, image, names), "--offline")
        files.append(file)
    return files


def upload(clients: Clients, names: Names, image: str) -> list[str]:
    """Uploads the specs to templates/ of the bucket and returns their names.

    Raises:
      CommandError: Cloud Storage refused.
    """
    uploaded, bucket_url = [], names.bucket_url
    try:
        bucket = clients.storage.bucket(bucket_url.removeprefix("gs://"))
        for pipeline in metadata.PARSERS:
            blob = bucket.blob(f"templates/{pipeline}.json")
            blob.upload_from_string(spec.text(pipeline, image, names), content_type="application/json")
            uploaded.append(f"{bucket_url}/{blob.name}")
    except google.ERRORS as error:
        raise _failure(error, clients.project, bucket_url) from error
    return uploaded


def _failure(error: BaseException, project: str, bucket_url: str) -> CommandError:
    problem = google.explain(error)
    grant = f"gcloud storage buckets add-iam-policy-binding {bucket_url} --member=user:YOUR_EMAIL"
    remedy = google.remedy(
        problem,
        project,
        create=f"anomaly resources create --project {project} --bucket {bucket_url.removeprefix('gs://')}",
        grant=f"{grant} --role=roles/storage.objectAdmin",
    )
    return CommandError(f"{bucket_url}: {problem}" + (f". To fix it: {remedy}" if remedy else ""))


def run(options: BuildOptions) -> None:
    """Builds the image, and writes or uploads the specs.

    Raises:
      OptionError: a name has the wrong form.
      CommandError: Google refused.
    """
    names = Names(
        options.project, options.region, options.bucket.removeprefix("gs://"), prefix=options.prefix
    )
    image = options.image or f"{names.image}:{options.tag or default_tag()}"
    try:
        spec.container_spec("streaming", image, names)
    except ValueError as error:
        raise OptionError(str(error)) from error
    if options.offline:
        for file in write(options.offline, names, image):
            print(f"Wrote {file}")
        return
    if not options.no_image:
        build_image(Gcloud(), names, image, options.builder)
    google.use_quota_project(options.project)
    for uri in upload(Clients(options.project), names, image):
        print(f"Uploaded {uri}")
    print(f"Launch with: anomaly launch streaming --project {options.project} --region {options.region}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser("anomaly templates", __doc__, EXAMPLES)
    add_options(parser, BuildOptions)
    run(read_options(BuildOptions, parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
