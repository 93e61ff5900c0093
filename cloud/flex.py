"""A job request as the launch of a Flex template."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from google.cloud import dataflow_v1beta3 as dataflow

from cloud.request import JobRequest, module

# Google's enums are typed as plain numbers where they are members, and the other way round where not.
_PRIVATE: Any = dataflow.WorkerIPAddressConfiguration.WORKER_IP_PRIVATE
_MODES: Any = {
    "at_least_once": dataflow.StreamingMode.STREAMING_MODE_AT_LEAST_ONCE,
    "exactly_once": dataflow.StreamingMode.STREAMING_MODE_EXACTLY_ONCE,
}


def parameters(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Command-line flags as template parameters.

    A switch becomes "true" or "false", as a template's form has it.

    Args:
      parser: of the pipeline.
      argv: its flags and Beam's; valid, because the pipeline's parser has taken them.

    Returns:
      The parameters, and the flags that are Beam's, without their dashes: "name" or "name=value".
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    words = list(argv)
    while words:
        flag, given, value = words.pop(0).partition("=")
        action = parser._option_string_actions.get(flag)
        if isinstance(action, argparse.BooleanOptionalAction):
            found[action.dest] = "false" if flag.startswith("--no-") else "true"
        elif action is not None:
            found[action.dest] = value if given else words.pop(0)
        elif flag.startswith("--"):
            follows = not given and words and not words[0].startswith("--")
            rest.append(f"{flag[2:]}={words.pop(0) if follows else value}" if given or follows else flag[2:])
    return found, rest


def launch_parameter(job: JobRequest) -> dataflow.LaunchFlexTemplateParameter:
    """What flexTemplates:launch is sent."""
    args = job.args
    given, rest = parameters(module(job.pipeline).parser(), job.pipeline_argv)
    experiments = [flag.partition("=")[2] for flag in rest if flag.startswith("experiments=")]
    environment = dataflow.FlexTemplateRuntimeEnvironment(
        num_workers=args.num_workers or 0,
        max_workers=args.max_num_workers,
        # Prime chooses the machines itself, and refuses a job that names one.
        machine_type="" if args.prime else args.machine_type,
        service_account_email=args.service_account_email,
        temp_location=args.temp_location,
        staging_location=args.staging_location,
        network=args.network or "",
        subnetwork=args.subnetwork or "",
        sdk_container_image=args.image or "",
        additional_experiments=[*job.service_options, *experiments],
        additional_pipeline_options=[flag for flag in rest if not flag.startswith("experiments=")],
        additional_user_labels=job.labels,
    )
    if args.no_use_public_ips:
        environment.ip_configuration = _PRIVATE
    if job.pipeline == "streaming":
        environment.enable_streaming_engine = True
        environment.streaming_mode = _MODES[args.streaming_mode]
    return dataflow.LaunchFlexTemplateParameter(
        job_name=args.job_name,
        container_spec_gcs_path=args.template,
        parameters=given,
        environment=environment,
        update=args.update,
        transform_name_mappings=dict(pair.split("=", 1) for pair in args.transform_name_mapping),
    )
