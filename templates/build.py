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
from common.command import CommandError, Parser, command
from common.google import ERRORS, explain, remedy
from common.options import OptionError, add_options, option, read_options
from templates import metadata, spec

EXAMPLES: Final = """
  anomaly templates --project=my-project --region=europe-west1
  anomaly templates --project=my-project --tag=v7 --no_image
  anomaly templates --project=my-project --offline=out/templates
"""

ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class TemplateOptions:
    """The project whose templates are built, and the image that they name."""

    project: str = option(help="Google Cloud project id. Example: my-project")
    region: str = option("us-central1", help="default: %(default)s")
    bucket: str = option("", help="without gs:// (default: PREFIX + PROJECT-anomaly)")
    prefix: str = option("", help="as given to `anomaly resources`. Example: staging-")
    tag: str | None = option(None, help="of the image (default: the commit of this checkout, or latest)")
    image: str | None = option(None, help="another image, with its tag; default: the project's repository")
    no_image: bool = option(False, action="store_true", help="do not have Cloud Build make the image first")
    offline: Path | None = option(
        None, type=Path, metavar="DIR", help="write the specs to DIR alone: no image, no upload"
    )

    def names(self) -> Names:
        """Returns the names of the installation.

        Raises:
          OptionError: one of them is not allowed.
        """
        return Names(self.project, self.region, self.bucket.removeprefix("gs://"), prefix=self.prefix)


def default_tag() -> str:
    """Returns the commit of this checkout, shortened; "latest" outside of one."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "latest"
    return done.stdout.strip() or "latest"


def build_image(gcloud: Gcloud, names: Names, image: str) -> None:
    """Has Cloud Build make and push the image from this checkout, as the builder's account.

    The source goes to temp/ of the bucket, whose files expire.

    Raises:
      CommandError: the build failed, or this is no checkout.
    """
    config = ROOT / "templates" / "cloudbuild.yaml"
    if not (ROOT / "setup.py").is_file():
        raise CommandError(
            "the image is built from a checkout of the project: run this in one, or pass --no_image"
        )
    words = ("builds", "submit", str(ROOT), f"--config={config}", f"--substitutions=_IMAGE={image}")
    account = f"projects/{names.project}/serviceAccounts/{names.builder}"
    gcloud.change(
        *words,
        f"--service-account={account}",
        f"--gcs-source-staging-dir={names.bucket_url}/temp/source",
        f"--project={names.project}",
        f"--region={names.region}",
    )


def write(directory: Path, image: str) -> list[Path]:
    """Writes PIPELINE.json for each pipeline into a directory, which it creates where it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for pipeline in metadata.PARSERS:
        file = directory / f"{pipeline}.json"
        file.write_text(spec.text(pipeline, image), encoding="utf-8")
        files.append(file)
    return files


def upload(clients: Clients, bucket_url: str, image: str) -> list[str]:
    """Uploads the specs to gs://BUCKET/templates; returns their names.

    Raises:
      GoogleAPICallError: the bucket does not exist, or storage.objects.create is missing.
    """
    bucket = clients.storage.bucket(bucket_url.removeprefix("gs://"))
    uploaded = []
    for pipeline in metadata.PARSERS:
        blob = bucket.blob(f"templates/{pipeline}.json")
        blob.upload_from_string(spec.text(pipeline, image), content_type="application/json")
        uploaded.append(f"{bucket_url}/{blob.name}")
    return uploaded


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: builds the image, and uploads the specs or writes them to files."""
    parser = Parser("anomaly templates", __doc__, EXAMPLES)
    add_options(parser, TemplateOptions)
    options = read_options(TemplateOptions, parser.parse_args(argv))
    names = options.names()
    image = options.image or f"{names.image}:{options.tag or default_tag()}"
    try:
        spec.container_spec("streaming", image)
        if options.offline:
            for file in write(options.offline, image):
                print(f"Wrote {file}")
            return 0
        if not options.no_image:
            build_image(Gcloud(), names, image)
    except spec.SpecError as error:
        raise OptionError(str(error)) from error
    try:
        uris = upload(Clients(options.project), names.bucket_url, image)
    except ERRORS as error:
        raise CommandError(_failure(error, options, names)) from error
    for uri in uris:
        print(f"Uploaded {uri}")
    print(f"Launch with: anomaly launch streaming --project={options.project} --region={options.region}")
    return 0


def _failure(error: BaseException, options: TemplateOptions, names: Names) -> str:
    problem = explain(error)
    fix = remedy(
        problem,
        options.project,
        create=f"anomaly resources create --project={options.project} --region={options.region}",
        grant=f"gcloud storage buckets add-iam-policy-binding {names.bucket_url} --member=user:YOUR_EMAIL "
        "--role=roles/storage.objectAdmin",
    )
    return f"{names.bucket_url}: {problem.text}" + (f"\nRun: {fix}" if fix else "")


if __name__ == "__main__":
    sys.exit(main())
