"""Puts the model on Vertex AI and takes it down again.

Example:
  python -m model.serving.vertex upload   --project P --model gs://B/model --image prebuilt-cpu
  python -m model.serving.vertex deploy   --project P --name pytorch_autoencoder-prebuilt --endpoint anomaly
  python -m model.serving.vertex traffic  --project P --endpoint anomaly --split V1=90 --split V2=10
  python -m model.serving.vertex predict  --project P --endpoint anomaly --input request.json
  python -m model.serving.vertex status   --project P
  python -m model.serving.vertex delete   --project P --endpoint anomaly --name pytorch_autoencoder-prebuilt
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.command import command
from model.artifact import ArtifactError
from model.serving.vertex import endpoints, prices, registry
from model.serving.vertex.endpoints import EndpointWish, Machines
from model.serving.vertex.session import Actions, VertexError, connect, parse_labels


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m model.serving.vertex`; gives the exit code."""
    args = _parser().parse_args(argv)
    import requests
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    try:
        if not args.project:
            raise VertexError("no project: give --project, or set GOOGLE_CLOUD_PROJECT")
        aiplatform = connect(args.project, args.region, args.api_endpoint)
        return int(args.run(aiplatform, args) or 0)
    except (VertexError, ArtifactError, ValueError) as error:
        print(f"model.serving.vertex: {error}", file=sys.stderr)
    except (GoogleAPIError, GoogleAuthError) as error:
        print(f"model.serving.vertex: Google Cloud answers: {error}", file=sys.stderr)
    except requests.RequestException as error:
        where = args.api_endpoint or f"Vertex AI in {args.region}"
        print(f"model.serving.vertex: no answer from {where}; is the address right? {error}", file=sys.stderr)
    return 1


def _upload(aiplatform: Any, args: argparse.Namespace) -> None:
    wanted = registry.Upload(
        args.model, args.image, args.region, args.name, args.staging, parse_labels(args.label)
    )
    model = registry.upload(aiplatform, wanted, Actions(args.dry_run))
    if model is not None:
        print(f"{model.display_name} {model.version_description}: {model.versioned_resource_name}")


def _deploy(aiplatform: Any, args: argparse.Namespace) -> None:
    actions = Actions(args.dry_run)
    endpoints.check_share(args.traffic)
    machines = Machines(
        args.machine_type,
        args.min_replicas,
        args.max_replicas,
        args.cpu_target,
        args.request_target,
        args.duty_cycle_target,
        args.accelerator_type,
        args.accelerators,
    )
    labels = parse_labels(args.label)
    wish = EndpointWish(args.endpoint, args.dedicated, args.network, tuple(args.psc_project), labels)
    model = registry.find_version(aiplatform, args.name, args.version)
    endpoint = endpoints.ensure(aiplatform, wish, args.traffic, actions)
    version = args.version or model.version_description
    if not endpoints.deployed_models(endpoint).get(version):
        cost = (machines.machine_type, machines.min_replicas, machines.max_replicas)
        print(prices.describe(*cost, machines.accelerator_type, machines.accelerators))
    done = endpoints.deploy(endpoint, model, version, machines, args.traffic, args.service_account, actions)
    if not done:
        print(f"{version} is deployed to {args.endpoint} already; traffic --split moves its traffic")
    elif not args.dry_run:
        print(f"{version} is deployed to {args.endpoint}: {endpoint.resource_name}")


def _traffic(aiplatform: Any, args: argparse.Namespace) -> None:
    split = endpoints.parse_split(args.split)
    changed = endpoints.set_traffic(
        endpoints.require(aiplatform, args.endpoint), split, Actions(args.dry_run)
    )
    if not args.dry_run:
        print(
            f"{args.endpoint}: {'split now' if changed else 'was split so already'}: {' '.join(args.split)}"
        )


def _predict(aiplatform: Any, args: argparse.Namespace) -> None:
    request = _request(args.input)
    endpoint = endpoints.require(aiplatform, args.endpoint)
    kind = endpoints.kind_of(endpoint)
    if (kind == endpoints.PRIVATE_SERVICE_CONNECT) != bool(args.psc_address):
        raise VertexError(
            f"--endpoint {args.endpoint} is a {kind} endpoint: --psc_address, its address in your network, "
            "is for psc endpoints, and they need it"
        )
    extra: dict[str, Any] = {}
    if kind == endpoints.DEDICATED:
        extra["use_dedicated_endpoint"] = True
    elif kind == endpoints.PRIVATE_SERVICE_CONNECT:
        extra["endpoint_override"] = args.psc_address
    try:
        answer = endpoint.predict(request["instances"], parameters=request.get("parameters"), **extra)
    except RuntimeError as error:  # the SDK's word for whatever a peered endpoint refuses
        raise VertexError(f"--endpoint {args.endpoint}: {error}") from error
    print(
        json.dumps(
            {
                "predictions": list(answer.predictions),
                "deployed_model": answer.deployed_model_id,
                "metadata": answer.metadata,
            },
            indent=2,
        )
    )


def _request(name: str) -> dict[str, Any]:
    try:
        request = json.loads(sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise VertexError(f"--input {name}: {error.strerror}; give a file, or -") from error
    except ValueError as error:
        raise VertexError(f"--input {name}: not JSON: {error}") from error
    if not isinstance(request, dict) or not isinstance(request.get("instances"), list):
        raise VertexError(f'--input {name}: expected {{"instances": [[30 numbers], ...]}}')
    return request


def _status(aiplatform: Any, args: argparse.Namespace) -> None:
    if args.endpoint:
        found = [endpoints.require(aiplatform, args.endpoint)]
    else:
        found = [*aiplatform.Endpoint.list(), *aiplatform.PrivateEndpoint.list()]
    entries = [_describe(endpoint) for endpoint in found]
    if args.format == "json":
        print(json.dumps(entries, indent=2))
        return
    if not entries:
        print("No endpoints in this project and region.")
    for entry in entries:
        print(f"{entry['endpoint']} ({entry['kind']}): {entry['resource']}")
        for model in entry["models"]:
            print(f"  {model['version']}: {model['traffic']} % of the traffic; {model['cost']}")
        if not entry["models"]:
            print("  nothing deployed, which costs nothing")


def _describe(endpoint: Any) -> dict[str, Any]:
    split = dict(endpoint.traffic_split)
    models = []
    for version, deployed in endpoints.deployed_models(endpoint).items():
        resources = deployed.dedicated_resources
        spec = resources.machine_spec
        accelerator = spec.accelerator_type.name if spec.accelerator_count else None
        models.append(
            {
                "version": version,
                "id": deployed.id,
                "model": deployed.model,
                "traffic": split.get(deployed.id, 0),
                "machine_type": spec.machine_type,
                "min_replicas": resources.min_replica_count,
                "max_replicas": resources.max_replica_count,
                "cost": prices.describe(
                    spec.machine_type,
                    resources.min_replica_count,
                    resources.max_replica_count,
                    accelerator,
                    spec.accelerator_count,
                ),
            }
        )
    return {
        "endpoint": endpoint.display_name,
        "resource": endpoint.resource_name,
        "kind": endpoints.kind_of(endpoint),
        "models": models,
    }


def _undeploy(aiplatform: Any, args: argparse.Namespace) -> None:
    endpoint = endpoints.require(aiplatform, args.endpoint)
    done = endpoints.undeploy(endpoint, args.version, Actions(args.dry_run))
    if not args.dry_run:
        print(f"{args.endpoint}: undeployed {', '.join(done) or 'nothing, it was not deployed'}")


def _delete(aiplatform: Any, args: argparse.Namespace) -> None:
    if not args.endpoint and not args.name:
        raise VertexError("give --endpoint, --name, or both")
    actions = Actions(args.dry_run)
    if args.endpoint:
        endpoint = endpoints.find(aiplatform, args.endpoint)
        if endpoint is not None:
            endpoints.delete(endpoint, actions)
        if not args.dry_run:
            print(f"endpoint {args.endpoint}: {'deleted' if endpoint is not None else 'was not there'}")
    if args.name:
        found = registry.delete_model(aiplatform, args.name, actions)
        if not args.dry_run:
            print(f"model {args.name}: {'deleted with its staged files' if found else 'was not there'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.serving.vertex",
        description="Put the model on Vertex AI and take it down again.",
        epilog="Example: python -m model.serving.vertex deploy --project my-project "
        "--name pytorch_autoencoder-custom --endpoint anomaly --min_replicas 2 --max_replicas 5",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--project",
        default=os.environ.get("GOOGLE_CLOUD_PROJECT"),
        help="Google Cloud project (default: GOOGLE_CLOUD_PROJECT)",
    )
    common.add_argument("--region", default="us-central1", help="default: %(default)s")
    common.add_argument(
        "--api_endpoint", metavar="URL", help="Vertex AI API other than the region's public one"
    )
    changing = argparse.ArgumentParser(add_help=False, parents=[common])
    changing.add_argument(
        "--dry-run", "--dry_run", dest="dry_run", action="store_true", help="only show what would be sent"
    )
    _add_upload(commands, changing)
    _add_deploy(commands, changing)
    traffic = commands.add_parser("traffic", parents=[changing], help="split traffic between versions (A/B)")
    traffic.add_argument("--endpoint", required=True, help="display name of the endpoint")
    traffic.add_argument(
        "--split",
        action="append",
        required=True,
        metavar="VERSION=PERCENT",
        help="share of a deployed version; give one for each, 100 in all. Example: 20260101.120000=90",
    )
    traffic.set_defaults(run=_traffic)
    predict = commands.add_parser("predict", parents=[common], help="send one request")
    predict.add_argument("--endpoint", required=True, help="display name of the endpoint")
    predict.add_argument("--input", default="-", help="file with the JSON request; - reads standard input")
    predict.add_argument("--psc_address", metavar="HOST", help="of a Private Service Connect endpoint")
    predict.set_defaults(run=_predict)
    status = commands.add_parser(
        "status", parents=[common], help="endpoints, versions, traffic, cost an hour"
    )
    status.add_argument("--endpoint", help="display name of one endpoint (default: all)")
    status.add_argument("--format", choices=("text", "json"), default="text")
    status.set_defaults(run=_status)
    undeploy = commands.add_parser("undeploy", parents=[changing], help="stop a version, and its cost")
    undeploy.add_argument("--endpoint", required=True, help="display name of the endpoint")
    which = undeploy.add_mutually_exclusive_group(required=True)
    which.add_argument("--version", help="version to undeploy")
    which.add_argument("--all", action="store_true", help="all of them")
    undeploy.set_defaults(run=_undeploy)
    delete = commands.add_parser(
        "delete", parents=[changing], help="undeploy all, delete endpoint, model and staged files"
    )
    delete.add_argument("--endpoint", help="display name of the endpoint")
    delete.add_argument("--name", help="display name of the model; all its versions go")
    delete.set_defaults(run=_delete)
    return parser


def _add_upload(commands: argparse._SubParsersAction, changing: argparse.ArgumentParser) -> None:
    upload = commands.add_parser("upload", parents=[changing], help="register a version of the model")
    upload.add_argument("--model", required=True, help="artifact directory, local or gs://")
    upload.add_argument(
        "--image",
        required=True,
        help="prebuilt-cpu or prebuilt-gpu for Google's TorchServe containers, or the image that "
        "model/serving/cloudbuild.yaml made",
    )
    upload.add_argument("--name", help="display name (default: the model's name and -prebuilt or -custom)")
    upload.add_argument("--staging", metavar="gs://DIR", help="takes a copy of a local artifact")
    upload.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    upload.set_defaults(run=_upload)


def _add_deploy(commands: argparse._SubParsersAction, changing: argparse.ArgumentParser) -> None:
    deploy = commands.add_parser("deploy", parents=[changing], help="deploy a version to an endpoint")
    deploy.add_argument("--name", required=True, help="display name of the model")
    deploy.add_argument("--version", help="version of the model (default: the newest)")
    deploy.add_argument("--endpoint", required=True, help="display name; made when it is not there")
    deploy.add_argument("--machine_type", default="n1-standard-2", help="default: %(default)s")
    deploy.add_argument("--min_replicas", type=int, default=1, help="default: %(default)s")
    deploy.add_argument("--max_replicas", type=int, default=1, help="default: %(default)s")
    deploy.add_argument("--cpu_target", type=int, metavar="PERCENT", help="autoscale on CPU use")
    deploy.add_argument(
        "--request_target", type=int, metavar="N", help="autoscale on requests a minute a replica"
    )
    deploy.add_argument(
        "--duty_cycle_target", type=int, metavar="PERCENT", help="autoscale on accelerator use"
    )
    deploy.add_argument("--accelerator_type", help="Example: NVIDIA_TESLA_T4")
    deploy.add_argument("--accelerators", type=int, default=0, metavar="N", help="accelerators a replica")
    deploy.add_argument(
        "--traffic",
        type=int,
        metavar="PERCENT",
        help="share of the traffic (default: 100 for the first, else 0)",
    )
    deploy.add_argument("--service_account", metavar="EMAIL", help="that the container runs as")
    deploy.add_argument("--dedicated", action="store_true", help="new endpoint with a DNS name of its own")
    deploy.add_argument("--network", help="new private endpoint in this peered network, by its full name")
    deploy.add_argument(
        "--psc_project",
        action="append",
        default=[],
        metavar="PROJECT",
        help="new private endpoint that this project may reach by Private Service Connect; may be repeated",
    )
    deploy.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="of a new endpoint")
    deploy.set_defaults(run=_deploy)


if __name__ == "__main__":
    sys.exit(main())
