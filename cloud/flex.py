"""Makes the launch of a Flex template from a job request."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, Final

from google.cloud import dataflow_v1beta3 as dataflow

from cloud.pipeline import module
from cloud.request import JobRequest
from common.options import NO, SwitchAction

# Google's enums are typed as plain numbers where they are members, and the other way round where not.
_PRIVATE: Any = dataflow.WorkerIPAddressConfiguration.WORKER_IP_PRIVATE
_KEY: Final = "dataflow_kms_key="
_LABEL: Final = re.compile("labels?=([^={]+)=([^=]*)")
_MODES: Any = {
    "at_least_once": dataflow.StreamingMode.STREAMING_MODE_AT_LEAST_ONCE,
    "exactly_once": dataflow.StreamingMode.STREAMING_MODE_EXACTLY_ONCE,
}


def parameters(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Splits command-line flags into template parameters and Beam's flags.

    A switch becomes "true" or "false", as the form of a template has it.

    Args:
      parser: of the pipeline.
      argv: its flags and Beam's, which the pipeline's parser has accepted.

    Returns:
      The parameters, and Beam's flags without their dashes: "name" or "name=value".
    """
    values: dict[str, str] = {}
    rest: list[str] = []
    remaining = list(argv)
    while remaining:
        flag, given, value = remaining.pop(0).partition("=")
        action = parser._option_string_actions.get(flag)
        if isinstance(action, SwitchAction):
            values[action.dest] = "false" if flag.startswith(NO) else "true"
        elif action is not None:
            values[action.dest] = value if given else remaining.pop(0)
        elif flag.startswith("--"):
            if not given and remaining and not remaining[0].startswith("--"):
                given, value = "=", remaining.pop(0)
            rest.append(f"{flag[2:]}{given}{value}")
    return values, rest


def launch_parameter(request: JobRequest) -> dataflow.LaunchFlexTemplateParameter:
    """Makes the message for flexTemplates:launch."""
    job, workers, command = request.job, request.workers, request.pipeline
    values, rest = parameters(module(command.name).parser(), command.argv)
    keys = [flag.removeprefix(_KEY) for flag in rest if flag.startswith(_KEY)]
    experiments = [flag.partition("=")[2] for flag in rest if flag.startswith("experiments=")]
    labels = {match[1]: match[2] for match in map(_LABEL.fullmatch, rest) if match}
    environment = dataflow.FlexTemplateRuntimeEnvironment(
        num_workers=workers.num_workers or 0,
        max_workers=workers.max_num_workers,
        machine_type=workers.machine,
        service_account_email=request.account,
        temp_location=request.temp_location,
        staging_location=request.staging_location,
        network=workers.network or "",
        subnetwork=workers.subnetwork or "",
        sdk_container_image=job.image or "",
        kms_key_name=keys[-1] if keys else "",
        additional_experiments=[*workers.service_options, *experiments],
        additional_pipeline_options=[
            flag for flag in rest if not (flag.startswith(("experiments=", _KEY)) or _LABEL.fullmatch(flag))
        ],
        additional_user_labels={**labels, **request.labels},
    )
    if workers.no_use_public_ips:
        environment.ip_configuration = _PRIVATE
    if command.name == "streaming":
        environment.enable_streaming_engine = True
        environment.streaming_mode = _MODES[request.streaming_mode]
    return dataflow.LaunchFlexTemplateParameter(
        job_name=request.job_name,
        container_spec_gcs_path=request.template,
        parameters=values,
        environment=environment,
        update=job.update,
        transform_name_mappings=job.renamed_steps,
    )
