"""Puts a model on Vertex AI, asks it there, and takes it down again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from common.command import CommandError, Parser, command
from common.google import ERRORS, explain, remedy
from common.options import OptionError, add_options, option, read_options
from common.output import Format, add_format, print_rows
from common.values import at_least
from model.serving.vertex import endpoints, prices, registry
from model.serving.vertex.endpoints import EndpointOptions
from model.serving.vertex.machines import MachineOptions
from model.serving.vertex.registry import UploadOptions
from model.serving.vertex.session import Actions, ProjectOptions, VertexError, connect

EXAMPLES: Final = """
  anomaly vertex upload --project P --model gs://B/model --image prebuilt-cpu
  anomaly vertex deploy --project P --name pytorch_autoencoder-prebuilt --endpoint anomaly
  anomaly vertex traffic --project P --endpoint anomaly --split V1=90 --split V2=10
  anomaly vertex predict --project P --endpoint anomaly --input request.json
  anomaly vertex list --project P
  anomaly vertex delete --project P --endpoint anomaly --name pytorch_autoencoder-prebuilt
"""
UNDEPLOY: Final = """\
Stop one version and its cost, by the ids that `anomaly vertex list` shows:
  gcloud ai endpoints undeploy-model ENDPOINT --deployed-model-id=DEPLOYED_ID --region=us-central1 --project=P
"""
"""A test runs this line against a server."""


@dataclass(frozen=True)
class DeployOptions:
    """The version to deploy, and its share of the traffic."""

    name: str = option(help="display name of the model")
    version: str | None = option(None, help="version of the model (default: the newest)")
    traffic: int | None = option(
        None,
        type=at_least(0, 100),
        metavar="PERCENT",
        help="share of the traffic (default: 100 for the first model, otherwise 0)",
    )
    service_account: str | None = option(None, metavar="EMAIL", help="that the container runs as")


@dataclass(frozen=True)
class TrafficOptions:
    """The split of an endpoint's traffic."""

    endpoint: str = option(help="display name of the endpoint")
    split: tuple[str, ...] = option(
        action="append",
        metavar="VERSION=PERCENT",
        help="share of a deployed version; repeat it for each, 100 in all. Example: 20260101.120000=90",
    )


@dataclass(frozen=True)
class PredictOptions:
    """A request to an endpoint."""

    endpoint: str = option(help="display name of the endpoint")
    input: str = option(
        "-", metavar="FILE", help="file with the JSON request; - reads standard input (default: %(default)s)"
    )
    psc_address: str | None = option(
        None, metavar="HOST", help="address of a Private Service Connect endpoint in your network"
    )


@dataclass(frozen=True)
class DeleteOptions:
    """The endpoint and the model to delete."""

    endpoint: str | None = option(None, help="display name of the endpoint")
    name: str | None = option(None, help="display name of the model; all its versions go")

    def __post_init__(self) -> None:
        if not self.endpoint and not self.name:
            raise OptionError("--endpoint, --name: expected one of them, or both")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly vertex`."""
    args = _parser().parse_args(argv)
    project = read_options(ProjectOptions, args)
    actions = Actions(getattr(args, "dry_run", False))
    run: Callable[[Any], None]
    if args.command == "upload":
        run = partial(
            upload, options=read_options(UploadOptions, args), region=project.region, actions=actions
        )
    elif args.command == "deploy":
        run = partial(
            deploy,
            options=read_options(DeployOptions, args),
            endpoint_options=read_options(EndpointOptions, args),
            machines=read_options(MachineOptions, args),
            actions=actions,
        )
    elif args.command == "traffic":
        traffic = read_options(TrafficOptions, args)
        run = partial(
            split_traffic, name=traffic.endpoint, split=endpoints.parse_split(traffic.split), actions=actions
        )
    elif args.command == "predict":
        run = partial(predict, options=read_options(PredictOptions, args))
    elif args.command == "list":
        run = partial(show_endpoints, form=args.format)
    else:
        run = partial(delete, options=read_options(DeleteOptions, args), actions=actions)
    try:
        run(connect(project))
    except (OptionError, CommandError):
        raise
    except ERRORS as error:
        problem = explain(error)
        role = "--role=roles/aiplatform.user --member=user:EMAIL"
        grant = f"gcloud projects add-iam-policy-binding {project.project} {role}"
        fix = remedy(problem, project.project, grant=grant)
        where = project.api_endpoint or f"Vertex AI in {project.region}"
        raise CommandError(f"{where} ({problem.kind}): {problem.text}{fix and f'; {fix}'}") from error
    except ValueError as error:  # the SDK's own checks of names and arguments
        raise CommandError(str(error)) from error
    return 0


def upload(aiplatform: Any, options: UploadOptions, region: str, actions: Actions) -> None:
    """Registers a version of the model and prints its name."""
    model = registry.upload(aiplatform, options, region, actions)
    if model is not None:
        print(f"{model.display_name} {model.version_description}: {model.versioned_resource_name}")


def deploy(
    aiplatform: Any,
    options: DeployOptions,
    endpoint_options: EndpointOptions,
    machines: MachineOptions,
    actions: Actions,
) -> None:
    """Deploys a version to an endpoint, which is made where it does not exist; prints the cost."""
    model = registry.find_version(aiplatform, options.name, options.version)
    endpoint = endpoints.ensure(aiplatform, endpoint_options, options.traffic, actions)
    version = options.version or model.version_description
    if version not in endpoints.deployed_models(endpoint):
        cost = (machines.machine_type, machines.least, machines.most)
        print(prices.describe(*cost, machines.accelerator_type, machines.accelerators))
    changes = endpoints.deploy(
        endpoint, model, version, machines, options.traffic, options.service_account, actions
    )
    name = endpoint_options.endpoint
    if changes:
        if not actions.dry_run:
            print(f"{version} on {name} has {', '.join(f'{c.flag} {c.expected}' for c in changes)} now")
    elif changes is not None:
        print(f"{version} is deployed to {name} already; anomaly vertex traffic moves its traffic")
    elif not actions.dry_run:
        print(f"{version} is deployed to {name}: {endpoint.resource_name}")


def split_traffic(aiplatform: Any, name: str, split: dict[str, int], actions: Actions) -> None:
    """Splits the traffic of an endpoint between its versions."""
    changed = endpoints.set_traffic(endpoints.require(aiplatform, name), split, actions)
    if not actions.dry_run:
        shares = " ".join(f"{version}={share}" for version, share in split.items())
        print(f"{name}: {'split now' if changed else 'was split so already'}: {shares}")


def predict(aiplatform: Any, options: PredictOptions) -> None:
    """Sends one request to an endpoint and prints the answer as JSON.

    Raises:
      OptionError: --psc_address does not fit the kind of the endpoint.
      VertexError: there is no request, or the endpoint refuses it.
    """
    request = _read_request(options.input)
    endpoint = endpoints.require(aiplatform, options.endpoint)
    kind = endpoints.kind_of(endpoint)
    if (kind == endpoints.PRIVATE_SERVICE_CONNECT) != bool(options.psc_address):
        raise OptionError(
            f"--psc_address: expected for psc endpoints alone, and {options.endpoint} is a {kind} endpoint"
        )
    extra: dict[str, Any] = {}
    if kind == endpoints.DEDICATED:
        extra["use_dedicated_endpoint"] = True
    elif kind == endpoints.PRIVATE_SERVICE_CONNECT:
        extra["endpoint_override"] = options.psc_address
    try:
        answer = endpoint.predict(request["instances"], parameters=request.get("parameters"), **extra)
    except RuntimeError as error:  # the SDK raises it for every refusal of a peered endpoint
        raise VertexError(f"--endpoint {options.endpoint}: {error}") from error
    content = {
        "predictions": list(answer.predictions),
        "deployed_model": answer.deployed_model_id,
        "metadata": answer.metadata,
    }
    print(json.dumps(content, indent=2))


def _read_request(name: str) -> dict[str, Any]:
    try:
        request = json.loads(sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise VertexError(f"--input: expected a file or -, got {name!r}: {error.strerror}") from error
    except ValueError as error:
        raise VertexError(f"--input {name}: expected JSON: {error}") from error
    if not isinstance(request, dict) or not isinstance(request.get("instances"), list):
        raise VertexError(f'--input {name}: expected {{"instances": [[30 numbers], ...]}}')
    return request


def show_endpoints(aiplatform: Any, form: Format) -> None:
    """Prints a row for each deployed model, and one for each endpoint without any."""
    rows = []
    for endpoint in (*aiplatform.Endpoint.list(), *aiplatform.PrivateEndpoint.list()):
        rows += endpoints.describe(endpoint)
    print_rows(rows, form, "No endpoints in this project and region.")


def delete(aiplatform: Any, options: DeleteOptions, actions: Actions) -> None:
    """Deletes an endpoint with its deployments, and a model with its staged files."""
    if options.endpoint:
        endpoint = endpoints.find(aiplatform, options.endpoint)
        if endpoint is not None:
            endpoints.delete(endpoint, actions)
        if not actions.dry_run:
            print(f"endpoint {options.endpoint}: {'deleted' if endpoint is not None else 'was not there'}")
    if options.name:
        was_there = registry.delete_model(aiplatform, options.name, actions)
        if not actions.dry_run:
            print(
                f"model {options.name}: {'deleted with its staged files' if was_there else 'was not there'}"
            )


def _parser() -> Parser:
    parser = Parser("anomaly vertex", f"{__doc__}\n\n{UNDEPLOY}", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    examples = {line.split()[2]: line for line in EXAMPLES.strip("\n").splitlines()}

    def add(name: str, text: str, *groups: type, changes: bool = True) -> Any:
        subparser = commands.add_parser(name, help=text, description=text, examples=examples[name])
        for group in groups:
            add_options(subparser, group)
        add_options(subparser, ProjectOptions, "project")
        subparser.set_defaults(project=os.environ.get("GOOGLE_CLOUD_PROJECT"))
        if changes:
            subparser.add_argument("--dry_run", action="store_true", help="only show what would be sent")
        return subparser

    add("upload", "register a version of the model", UploadOptions)
    add("deploy", "deploy a version to an endpoint", DeployOptions, EndpointOptions, MachineOptions)
    add("traffic", "split traffic between versions (A/B)", TrafficOptions)
    add("predict", "send one request", PredictOptions, changes=False)
    add_format(add("list", "endpoints, versions, traffic, dollars an hour", changes=False))
    add("delete", "undeploy all, delete endpoint, model and staged files", DeleteOptions)
    return parser


if __name__ == "__main__":
    sys.exit(main())
