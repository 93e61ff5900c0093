"""Submits a job request with Beam's DataflowRunner from this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cloud
from cloud.jobs import JobError
from cloud.pipeline import module
from cloud.request import JobRequest
from common.options import OptionError


def setup_file() -> Path:
    """Finds the setup.py of the checkout that this code runs from.

    Raises:
      JobError: it does not run from a checkout.
    """
    path = Path(cloud.__file__).resolve().parents[1] / "setup.py"
    if not path.is_file():
        raise JobError("--via=direct: expected --image, or a checkout of the project to stage, got neither")
    return path


def argv(request: JobRequest) -> list[str]:
    """Makes the command line of the pipeline, with the flags of Beam's runner.

    Raises:
      JobError: there is neither an image nor a checkout.
    """
    installation, job, workers = request.installation, request.job, request.workers
    flags = [
        *request.pipeline.argv,
        "--runner=DataflowRunner",
        f"--project={installation.project}",
        f"--region={installation.region}",
        f"--job_name={request.job_name}",
        f"--temp_location={request.temp_location}",
        f"--staging_location={request.staging_location}",
        f"--service_account_email={request.account}",
        f"--max_num_workers={workers.max_num_workers}",
        "--no_save_main_session",
        *(f"--labels={key}={value}" for key, value in request.labels.items()),
        *(f"--dataflow_service_options={option}" for option in workers.service_options),
    ]
    if job.image:
        # The image has the package: nothing is staged but the pipeline.
        flags += [f"--sdk_container_image={job.image}", "--sdk_location=container"]
    else:
        flags.append(f"--setup_file={setup_file()}")
    optional = {
        "worker_machine_type": workers.machine,
        "num_workers": workers.num_workers,
        "network": workers.network,
        "subnetwork": workers.subnetwork,
        "dataflow_endpoint": installation.endpoint,
        "transform_name_mapping": json.dumps(job.renamed_steps) if job.renamed_steps else "",
    }
    flags += [f"--{name}={value}" for name, value in optional.items() if value]
    is_streaming = request.pipeline.name == "streaming"
    switches = {
        "no_use_public_ips": workers.no_use_public_ips,
        "update": job.update,
        "enable_streaming_engine": is_streaming,
        "dataflow_service_options=streaming_mode_at_least_once": is_streaming
        and request.streaming_mode == "at_least_once",
    }
    return flags + [f"--{name}" for name, is_on in switches.items() if is_on]


def submit(request: JobRequest) -> str:
    """Submits the job and returns its id.

    Raises:
      JobError: Dataflow or Cloud Storage refused.
    """
    flags = argv(request)
    try:
        result: Any = module(request.pipeline.name).run(flags)
    except OptionError:
        raise
    except Exception as error:  # Beam passes on what Google's clients raise, and raises kinds of its own
        raise JobError(f"job {request.job_name} was not submitted: {error}") from error
    return str(result.job_id())
