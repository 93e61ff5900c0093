"""The build of the image by Cloud Build: what it says, and which step failed."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cloud.resources.declared import Names
from cloud.resources.gcloud import Gcloud, GcloudError
from common.command import CommandError
from common.options import option

ROOT: Final = Path(__file__).resolve().parents[1]

Machine = Literal["e2-medium", "e2-highcpu-8", "e2-highcpu-32", "n1-highcpu-8", "n1-highcpu-32"]

_RUNNING: Final = ("QUEUED", "PENDING", "WORKING")
_FAILED: Final = ("FAILURE", "TIMEOUT", "INTERNAL_ERROR", "EXPIRED", "CANCELLED")
_PAUSE: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """The options of the build of the image."""

    build_region: str = option(
        "", metavar="REGION", help="where Cloud Build runs, `global` as well (default: --region)"
    )
    build_machine: Machine = option("e2-highcpu-8", help="machine type of the build (default: %(default)s)")


def build_image(gcloud: Gcloud, names: Names, image: str, options: ImageOptions) -> None:
    """Has Cloud Build make and push the image from this checkout, as the account of builds.

    The log is shown as it comes. The source goes to temp/ of the bucket, whose files Cloud Storage removes
    after a week.

    Raises:
      CommandError: the build failed, or this is no checkout.
    """
    config = ROOT / "templates" / "cloudbuild.yaml"
    if not (ROOT / "setup.py").is_file():
        raise CommandError(
            "the image: expected a checkout of the project to build it from, got none: pass --no_image"
        )
    place = (f"--project={names.project}", f"--region={options.build_region or names.region}")
    build = json.loads(
        gcloud.follow(
            *("builds", "submit", str(ROOT), f"--config={config}", f"--substitutions=_IMAGE={image}"),
            f"--service-account=projects/{names.project}/serviceAccounts/{names.builder}",
            f"--gcs-source-staging-dir={names.bucket_url}/temp/source",
            f"--machine-type={options.build_machine}",
            *place,
            "--async",
            "--format=json",
        )
    )
    url = build.get("logUrl", "")
    _print_progress(f"Build {build['id']}; its log: {url}")
    try:
        _follow(gcloud, build["id"], place)
        build = _wait(build["id"], place)
    except KeyboardInterrupt:
        _print_progress(f"\nThe build goes on: {url}")
        _print_progress(f"To end it: gcloud builds cancel {build['id']} {' '.join(place)}")
        raise
    if build["status"] != "SUCCESS":
        raise CommandError(f"the image: {failure(build)}. The log: {url}")


def _follow(gcloud: Gcloud, build_id: str, place: tuple[str, ...]) -> None:
    """Shows the log until the build ends.

    A build that runs as an account of the project writes to Cloud Logging, which the beta command reads.
    """
    try:
        gcloud.follow("beta", "builds", "log", build_id, "--stream", *place)
    except GcloudError:  # it said why: no right to read logs, no beta commands on this machine
        _print_progress("The log cannot be shown here. The build goes on, and this waits for its end.")


def _wait(build_id: str, place: tuple[str, ...]) -> Any:
    """Waits for the end of the build; gcloud does so as well, where it can show the log."""
    while True:
        build = Gcloud().read("builds", "describe", build_id, *place)
        if build["status"] not in _RUNNING:
            return build
        time.sleep(_PAUSE)


def failure(build: Any) -> str:
    """Describes why a build failed: its state, the step, and what Cloud Build says.

    >>> step = {"name": "docker", "args": ["push"], "status": "FAILURE", "exitCode": 1}
    >>> failure({"id": "7", "status": "FAILURE", "steps": [step]})
    'build 7 ended with FAILURE, in step 1, docker push, which ended with 1'
    """
    text = f"build {build['id']} ended with {build['status']}"
    for number, step in enumerate(build.get("steps", ()), start=1):
        if step.get("status") in _FAILED:
            text += f", in step {number}, {' '.join([step['name'], *step.get('args', ())])}"
            text += f", which ended with {step['exitCode']}" if step.get("exitCode") else ""
            break
    detail = build.get("failureInfo", {}).get("detail") or build.get("statusDetail", "")
    return f"{text}: {detail.rstrip('.')}" if detail else text


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
