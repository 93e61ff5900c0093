"""Container specs, which `flexTemplates:launch` reads from Cloud Storage.

`gcloud dataflow flex-template build` would drop `streaming` and the fields of the streaming modes when it
writes a spec, so the project writes its own.
"""

from __future__ import annotations

import json
from typing import Any

from google.cloud.dataflow_v1beta3.types import ContainerSpec
from google.protobuf import json_format

from cloud.jobs import PIPELINE_LABEL
from cloud.request import WorkerOptions
from cloud.resources.base import LABEL
from cloud.resources.declared import Names
from common.names import IMAGE
from templates.metadata import metadata


class SpecError(ValueError):
    """The spec would not launch; the text names the reason."""


def default_environment(pipeline: str, image: str, names: Names) -> dict[str, Any]:
    """Makes the environment of a job that the console, gcloud, Terraform or Composer launches.

    It is that of a job that `anomaly launch` launches without further flags.

    Args:
      pipeline: "streaming" or "batch".
      image: of the workers.
      names: of the resources of the installation.
    """
    workers = WorkerOptions()
    environment: dict[str, Any] = {
        # Launcher and workers have one image: versions that were tested together run together.
        "sdkContainerImage": image,
        "serviceAccountEmail": names.account,
        "maxWorkers": workers.max_num_workers,
        "machineType": workers.machine,
        "tempLocation": f"{names.bucket_url}/temp",
        "stagingLocation": f"{names.bucket_url}/staging",
        "additionalUserLabels": {**LABEL, PIPELINE_LABEL: pipeline},
    }
    if pipeline == "streaming":
        environment |= {"enableStreamingEngine": True, "streamingMode": "STREAMING_MODE_AT_LEAST_ONCE"}
    return environment


def container_spec(pipeline: str, image: str, names: Names) -> dict[str, Any]:
    """Makes the container spec of a template.

    Args:
      pipeline: "streaming" or "batch".
      image: of launcher and workers, with tag or digest.
      names: of the resources of the installation.

    Raises:
      SpecError: the name of the image breaks a rule, or Dataflow's own message type does not take the spec.
    """
    problem = IMAGE.problem(image)
    if problem:
        raise SpecError(f"--image: {problem}")
    spec = {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": metadata(pipeline),
        "defaultEnvironment": default_environment(pipeline, image, names),
    }
    try:
        json_format.ParseDict(spec, ContainerSpec.pb(ContainerSpec()))
    except json_format.ParseError as error:
        raise SpecError(f"{pipeline}: Dataflow does not know this spec: {error}") from error
    return spec


def text(pipeline: str, image: str, names: Names) -> str:
    """Returns the spec as JSON."""
    return json.dumps(container_spec(pipeline, image, names), indent=1, ensure_ascii=False) + "\n"
