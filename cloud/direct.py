"""A job request as a submission by Beam's DataflowRunner from this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pipelines
from cloud.jobs import JobError
from cloud.request import JobRequest, module
from common.options import OptionError


def setup_file() -> Path:
    """setup.py of the checkout that this code runs from.

    Raises:
      JobError: it does not run from a checkout.
    """
    path = Path(pipelines.__file__).resolve().parents[1] / "setup.py"
    if not path.is_file():
        raise JobError("--via=direct needs --image, or a checkout of the project with its setup.py to stage")
    return path


def argv(job: JobRequest) -> list[str]:
    """The command line of the pipeline with everything that Beam's runner is told.

    Raises:
      JobError: there is neither an image nor a checkout.
    """
    args = job.args
    found = [
        *job.pipeline_argv,
        "--runner=DataflowRunner",
        f"--project={args.project}",
        f"--region={args.region}",
        f"--job_name={args.job_name}",
        f"--temp_location={args.temp_location}",
        f"--staging_location={args.staging_location}",
        f"--service_account_email={args.service_account_email}",
        f"--max_num_workers={args.max_num_workers}",
        "--no_save_main_session",
        *(f"--labels={key}={value}" for key, value in job.labels.items()),
        *(f"--dataflow_service_options={option}" for option in job.service_options),
    ]
    if args.image:
        # The image has the package: nothing is staged but the pipeline.
        found += [f"--sdk_container_image={args.image}", "--sdk_location=container"]
    else:
        found.append(f"--setup_file={setup_file()}")
    if not args.prime:
        found.append(f"--worker_machine_type={args.machine_type}")
    for name in ("num_workers", "network", "subnetwork", "dataflow_endpoint"):
        if getattr(args, name):
            found.append(f"--{name}={getattr(args, name)}")
    if args.no_use_public_ips:
        found.append("--no_use_public_ips")
    if args.update:
        found.append("--update")
    if args.transform_name_mapping:
        mapping = dict(pair.split("=", 1) for pair in args.transform_name_mapping)
        found.append(f"--transform_name_mapping={json.dumps(mapping)}")
    if job.pipeline == "streaming":
        found.append("--enable_streaming_engine")
        if args.streaming_mode == "at_least_once":
            found.append("--dataflow_service_options=streaming_mode_at_least_once")
    return found


def submit(job: JobRequest) -> str:
    """Submits the job and gives its id.

    Raises:
      JobError: Dataflow or Cloud Storage refused.
    """
    words = argv(job)
    try:
        result: Any = module(job.pipeline).run(words)
    except OptionError:
        raise
    except Exception as error:  # Beam passes on what Google's clients raise, and raises kinds of its own
        raise JobError(f"{job.args.job_name}: not submitted: {error}") from error
    return str(result.job_id())
