"""A job to be launched: the options of the launch, beside those of the pipeline itself."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from cloud import jobs, versions
from cloud.machines import machine_for
from cloud.resources.declared import Names
from common.names import GCS, GPU, JOB
from pipelines import options

PIPELINES: Final = ("streaming", "batch")
STREAMING_MODES: Final = ("at_least_once", "exactly_once")
MACHINE_TYPE: Final = "n2-standard-2"
GPU_HELP: Final = (
    "needs an --image with a build of torch for CUDA; the project's own has none. Example: nvidia-l4:1"
)


def module(pipeline: str) -> Any:
    """pipelines.streaming or pipelines.batch.

    Imported when it is needed: it brings torch and more, which take seconds to load, and
    `launch list`, `drain` and `cancel` do without.
    """
    return importlib.import_module(f"pipelines.{pipeline}")


@dataclass(frozen=True)
class JobRequest:
    """What to launch.

    Attributes:
      pipeline: "streaming" or "batch".
      args: the options of `add_arguments`, defaults filled in.
      pipeline_argv: the pipeline's own flags, defaults filled in.
      pipeline_args: the same, parsed.
      beam_options: the flags among them that go to Beam.
      names: of the installation.
    """

    pipeline: str
    args: argparse.Namespace
    pipeline_argv: tuple[str, ...]
    pipeline_args: argparse.Namespace
    beam_options: PipelineOptions
    names: Names

    @property
    def service_options(self) -> list[str]:
        """Dataflow's service options that the flags stand for."""
        args = self.args
        found = []
        if args.min_num_workers:
            found.append(f"min_num_workers={args.min_num_workers}")
        if args.prime:
            found.append("enable_prime")
        if args.gpu:
            kind, _, count = args.gpu.partition(":")
            found.append(f"worker_accelerator=type:{kind};count:{count or 1};install-nvidia-driver")
        return found

    @property
    def labels(self) -> dict[str, str]:
        """What marks the job as this project's."""
        dataset = self.pipeline_args.output_dataset
        where = {jobs.DATASET_LABEL: jobs.label_value(dataset.replace(".", "-"))} if dataset else {}
        return {**jobs.LABEL, **where, "pipeline": self.pipeline}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of a launch. Where Beam has one of the same meaning, it has Beam's name."""
    group = parser.add_argument_group("project")
    group.add_argument("--project", required=True, help="Google Cloud project id. Example: my-project")
    group.add_argument("--region", default="us-central1", help="default: %(default)s")
    group.add_argument("--bucket", default="", help="without gs:// (default: PREFIX, PROJECT and -anomaly)")
    group.add_argument("--dataset", default="anomaly", help="BigQuery dataset (default: %(default)s)")
    group.add_argument("--prefix", default="", help="as given to cloud.resources. Example: staging-")
    jobs.add_endpoint_argument(group)
    group = parser.add_argument_group("job")
    group.add_argument(
        "--via",
        choices=("flex", "direct"),
        default="flex",
        help="flex launches the template that `python -m templates.build` uploaded; direct submits from this "
        "machine (default: %(default)s)",
    )
    group.add_argument(
        "--job_name",
        type=JOB,
        metavar="NAME",
        help="default: transaction-anomaly-streaming, or transaction-anomaly-batch-TIME",
    )
    group.add_argument(
        "--template", type=GCS, metavar="GS", help="default: gs://BUCKET/templates/PIPELINE.json"
    )
    group.add_argument(
        "--image",
        metavar="IMAGE",
        help="image of the workers. flex: the template's own is the default; direct: without one, this "
        "checkout is staged as a package and every worker installs it at start, which takes minutes. "
        "Example: us-central1-docker.pkg.dev/my-project/anomaly/pipelines:1",
    )
    group.add_argument("--temp_location", type=GCS, metavar="GS", help="default: gs://BUCKET/temp")
    group.add_argument("--staging_location", type=GCS, metavar="GS", help="default: gs://BUCKET/staging")
    group.add_argument(
        "--update",
        action="store_true",
        help="replace the running streaming job of this name, keeping its state",
    )
    group.add_argument(
        "--transform_name_mapping",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="with --update, for a step that was renamed; may be given several times",
    )
    _add_worker_arguments(parser)


def _add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--service_account_email", metavar="EMAIL", help="default: anomaly-worker@PROJECT..., see resources"
    )
    number = options.at_least(1)
    group.add_argument("--min_num_workers", type=number, metavar="N", help="what autoscaling keeps")
    group.add_argument("--num_workers", type=number, metavar="N", help="at the start")
    group.add_argument(
        "--max_num_workers",
        type=number,
        default=4,
        metavar="N",
        help="autoscaling stops there going up; what bounds the bill (default: %(default)s)",
    )
    group.add_argument(
        "--machine_type", metavar="TYPE", help=f"default: {MACHINE_TYPE}, or the smallest with --gpu"
    )
    group.add_argument("--network", help="VPC network. Example: default")
    group.add_argument(
        "--subnetwork", metavar="URL", help="Example: regions/us-central1/subnetworks/my-subnet"
    )
    group.add_argument(
        "--no_use_public_ips",
        action="store_true",
        help="workers without addresses of their own; the subnetwork needs Private Google Access",
    )
    group.add_argument(
        "--streaming_mode",
        choices=STREAMING_MODES,
        help="of a stream: at_least_once costs less, and the views over the tables keep one row a "
        "transaction; exactly_once where the alert topic must not get a message twice "
        f"(default: {STREAMING_MODES[0]})",
    )
    group.add_argument("--prime", action="store_true", help="Dataflow Prime; goes without --machine_type")
    group.add_argument("--gpu", type=GPU, metavar="TYPE[:COUNT]", help=GPU_HELP)


def request(
    parser: argparse.ArgumentParser,
    pipeline: str,
    args: argparse.Namespace,
    rest: Sequence[str],
    now: dt.datetime | None = None,
) -> JobRequest:
    """Completes the options and has the pipeline check its own.

    Ends the program with a message that names the flag when something does not fit.

    Args:
      parser: reports errors.
      pipeline: "streaming" or "batch".
      args: the options of `add_arguments`.
      rest: what those left over: the pipeline's flags and Beam's.
      now: for the name of a batch job.
    """
    try:
        names = Names(
            args.project, args.region, args.bucket.removeprefix("gs://"), args.dataset, "", args.prefix
        )
    except ValueError as error:
        parser.error(str(error))
    moment = now or dt.datetime.now(dt.UTC)
    suffix = "" if pipeline == "streaming" else f"-{moment:%Y%m%d-%H%M%S}"
    defaults: dict[str, Any] = {
        "job_name": f"transaction-anomaly-{pipeline}{suffix}",
        "template": f"{names.bucket_url}/templates/{pipeline}.json",
        "temp_location": f"{names.bucket_url}/temp",
        "staging_location": f"{names.bucket_url}/staging",
        "service_account_email": names.account,
        "machine_type": MACHINE_TYPE,
        "streaming_mode": STREAMING_MODES[0],
    }
    _check_fit(parser, pipeline, args)
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    argv = [*rest, *_defaults(pipeline, names, rest)]
    entry = module(pipeline)
    own_parser = entry.parser()
    own, beam_options = own_parser.parse(argv)
    if own.write_method == options.JAVA_WRITE_METHOD and args.via == "flex":
        own_parser.error(
            f"--write_method={own.write_method} needs Java, which the template's image does not have: use "
            f"--write_method={options.WRITE_METHODS[0]}, or --via=direct on a machine with Java"
        )
    beam_options.view_as(GoogleCloudOptions).temp_location = args.temp_location
    entry.check_arguments(own_parser, own, beam_options)
    return JobRequest(pipeline, args, tuple(argv), own, beam_options, names)


def _check_fit(parser: argparse.ArgumentParser, pipeline: str, args: argparse.Namespace) -> None:
    """Refuses what would be ignored, or refused by Dataflow later on; `args` as they were given."""
    for flag in ("min_num_workers", "num_workers"):
        if (getattr(args, flag) or 0) > args.max_num_workers:
            parser.error(f"--{flag}={getattr(args, flag)} is above --max_num_workers={args.max_num_workers}")
    if args.update and pipeline == "batch":
        parser.error("--update is for streaming jobs")
    if args.streaming_mode and pipeline == "batch":
        parser.error("--streaming_mode is for streaming jobs")
    if args.template and args.via == "direct":
        parser.error("--template goes with --via=flex; --via=direct submits from this machine")
    if args.prime and args.machine_type:
        parser.error("--prime chooses the machines itself: leave out --machine_type")
    if args.prime and args.gpu:
        # With Prime, GPUs come from resource hints on the steps, and these pipelines have none.
        parser.error("--prime takes no --gpu: leave out one of them")
    if args.gpu and not args.image:
        parser.error(f"--gpu {GPU_HELP}")
    if args.gpu:
        try:
            args.machine_type = machine_for(args.gpu, args.machine_type)
        except ValueError as error:
            parser.error(str(error))
    differing = versions.difference() if args.via == "direct" and args.image else ""
    if differing:
        parser.error(f"--image with --via=direct: {differing}")
    if args.transform_name_mapping and not args.update:
        parser.error("--transform_name_mapping goes with --update")
    for pair in args.transform_name_mapping:
        if pair.count("=") != 1 or pair.startswith("="):
            parser.error(f"--transform_name_mapping: expected OLD=NEW, got {pair!r}")


def _defaults(pipeline: str, names: Names, given: Sequence[str]) -> list[str]:
    """Flags that follow from the names, where the user gave no other."""

    def absent(*flags: str) -> bool:
        return not any(word.split("=", 1)[0] in flags for word in given)

    found = []
    if absent("--model"):
        found.append(f"--model={names.bucket_url}/model")
    if absent("--output_dataset", "--output"):
        found.append(f"--output_dataset={names.dataset_name}")
    if pipeline == "streaming":
        if absent("--subscription", "--topic"):
            found.append(f"--subscription={names.subscription('transactions-pipeline')}")
        if absent("--alert_topic"):
            found.append(f"--alert_topic={names.topic('alerts')}")
    return found
