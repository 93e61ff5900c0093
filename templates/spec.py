"""Container specs, which `flexTemplates:launch` reads from Cloud Storage.

`gcloud dataflow flex-template build` would drop `streaming` and the fields of the streaming modes when it
writes a spec, so the project writes its own.
"""

from __future__ import annotations

import json
from typing import Any

from google.cloud.dataflow_v1beta3.types import ContainerSpec
from google.protobuf import json_format

from common.names import IMAGE
from templates.metadata import metadata


class SpecError(ValueError):
    """The spec would not launch; the text names the reason."""


def container_spec(pipeline: str, image: str) -> dict[str, Any]:
    """Makes the container spec of a template.

    Args:
      pipeline: "streaming" or "batch".
      image: of launcher and workers, with tag or digest.

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
        # Launcher and workers have one image: versions that were tested together run together.
        "defaultEnvironment": {"sdkContainerImage": image},
    }
    try:
        json_format.ParseDict(spec, ContainerSpec.pb(ContainerSpec()))
    except json_format.ParseError as error:
        raise SpecError(f"{pipeline}: Dataflow does not know this spec: {error}") from error
    return spec


def text(pipeline: str, image: str) -> str:
    """Returns the spec as JSON."""
    return json.dumps(container_spec(pipeline, image), indent=1, ensure_ascii=False) + "\n"
