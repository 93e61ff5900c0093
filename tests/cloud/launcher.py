"""The part of Dataflow that launches a template: it makes a command line for the image's program."""

from __future__ import annotations

from typing import Any

from google.cloud.dataflow_v1beta3.types import FlexTemplateRuntimeEnvironment
from google.protobuf import json_format

from tests.cloud.google_server import Google


def command_line(google: Google, body: dict[str, Any], spec: dict[str, Any]) -> list[str]:
    """Makes the flags that the program gets from the body of a launch and the container spec.

    Parameters come as --name=value, the environment as flags of Beam. Of the environment, the launch goes
    before the spec.
    """
    message = FlexTemplateRuntimeEnvironment.pb(FlexTemplateRuntimeEnvironment())
    json_format.ParseDict(spec["defaultEnvironment"], message)
    json_format.ParseDict(body.get("environment", {}), message)
    environment = FlexTemplateRuntimeEnvironment.wrap(message)
    flags = {
        "project": "local-project",
        "job_name": body["jobName"],
        "runner": "DataflowRunner",
        "dataflow_endpoint": google.url,
        "temp_location": environment.temp_location,
        "staging_location": environment.staging_location,
        "max_num_workers": environment.max_workers,
        "worker_machine_type": environment.machine_type,
        "service_account_email": environment.service_account_email,
        "sdk_container_image": environment.sdk_container_image,
        "sdk_location": "container",
    }
    words = [f"--{name}={value}" for name, value in {**body["parameters"], **flags}.items()]
    words += [f"--experiments={one}" for one in environment.additional_experiments]
    words += [f"--{one}" for one in environment.additional_pipeline_options]
    words += [f"--labels={key}={value}" for key, value in environment.additional_user_labels.items()]
    return [*words, *(["--update"] if body.get("update") else [])]
