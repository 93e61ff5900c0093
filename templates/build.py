"""Builds the image and the two Flex templates, and uploads their specs."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound
from google.auth.exceptions import GoogleAuthError

from cloud.resources.base import LOGIN, Clients
from cloud.resources.declared import Names
from cloud.resources.gcloud import Gcloud, GcloudError
from common.streams import ends_quietly
from templates import metadata, spec

EXAMPLE: Final = """examples:
  python -m templates.build --project my-project --region europe-west1
  python -m templates.build --project my-project --tag v7 --no-image
  python -m templates.build --project my-project --offline out/templates
"""

ROOT: Final = Path(__file__).resolve().parents[1]


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    found = argparse.ArgumentParser(
        prog="python -m templates.build",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--project", required=True, help="Google Cloud project id. Example: my-project")
    found.add_argument("--region", default="us-central1", help="default: %(default)s")
    found.add_argument("--bucket", default="", help="without gs:// (default: PREFIX + PROJECT-anomaly)")
    found.add_argument("--prefix", default="", help="as given to cloud.resources. Example: staging-")
    found.add_argument("--tag", help="of the image (default: the commit of this checkout, or latest)")
    found.add_argument("--image", help="another image, with its tag; default: the project's repository")
    found.add_argument(
        "--no-image", dest="build", action="store_false", help="do not have Cloud Build make the image first"
    )
    found.add_argument(
        "--offline", type=Path, metavar="DIR", help="write the specs to DIR alone: no image, no upload"
    )
    return found


def default_tag() -> str:
    """The commit of this checkout, shortened; "latest" outside of one."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "latest"
    return done.stdout.strip() or "latest"


def build_image(gcloud: Gcloud, names: Names, image: str) -> None:
    """Has Cloud Build make and push the image from this checkout, as the account that is declared for it.

    The source goes to temp/ of the bucket, which is emptied by itself.

    Raises:
      GcloudError: the build failed, or this is no checkout.
    """
    config = ROOT / "templates" / "cloudbuild.yaml"
    if not (ROOT / "setup.py").is_file():
        raise GcloudError(
            "the image is built from a checkout of the project; run this in one, or give --no-image"
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
    """Writes PIPELINE.json for each pipeline into a directory, which is made when missing."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for pipeline in metadata.PARSERS:
        file = directory / f"{pipeline}.json"
        file.write_text(spec.text(pipeline, image), encoding="utf-8")
        files.append(file)
    return files


def upload(clients: Clients, bucket_url: str, image: str) -> list[str]:
    """Uploads the specs to gs://BUCKET/templates and gives their names.

    Raises:
      NotFound: there is no such bucket.
      Forbidden: you lack storage.objects.create.
    """
    bucket = clients.storage.bucket(bucket_url.removeprefix("gs://"))
    uploaded = []
    for pipeline in metadata.PARSERS:
        blob = bucket.blob(f"templates/{pipeline}.json")
        blob.upload_from_string(spec.text(pipeline, image), content_type="application/json")
        uploaded.append(f"{bucket_url}/{blob.name}")
    return uploaded


@ends_quietly
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    found = parser()
    args = found.parse_args(argv)
    try:
        names = Names(args.project, args.region, args.bucket.removeprefix("gs://"), prefix=args.prefix)
        image = args.image or f"{names.image}:{args.tag or default_tag()}"
        spec.container_spec("streaming", image)
        if args.offline:
            for file in write(args.offline, image):
                print(f"Wrote {file}")
            return 0
        if args.build:
            build_image(Gcloud(), names, image)
        for uri in upload(Clients(args.project), names.bucket_url, image):
            print(f"Uploaded {uri}")
    except (ValueError, GcloudError) as error:
        found.exit(1, f"{found.prog}: {error}\n")
    except NotFound:
        create = f"python -m cloud.resources create --project {args.project} --region {args.region}"
        found.exit(1, f"{found.prog}: no bucket {names.bucket_url}; make it with: {create}\n")
    except Forbidden as error:
        command = f"gcloud storage buckets add-iam-policy-binding {names.bucket_url} --member=user:YOUR_EMAIL"
        found.exit(1, f"{found.prog}: {error.message}\n{command} --role=roles/storage.objectAdmin\n")
    except GoogleAuthError as error:
        found.exit(1, f"{found.prog}: no valid credentials: {error}\nRun `{LOGIN}`.\n")
    except GoogleAPICallError as error:
        found.exit(1, f"{found.prog}: {names.bucket_url}: {error.message}\n")
    print(f"Launch with: python -m cloud.launch streaming --project {args.project} --region {args.region}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
