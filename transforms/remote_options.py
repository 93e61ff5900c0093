"""Options of the scorer: the model in the worker, or a server."""

from __future__ import annotations

import argparse
import logging
from typing import Any, Final
from urllib.parse import urlsplit

from apache_beam.ml.inference.base import ModelHandler

from common.names import ENDPOINT
from model.artifact import MODEL_NAME, Manifest
from transforms.clients import is_loopback
from transforms.remote import Limits, RemoteHandler, TorchServeHandler, VertexHandler
from transforms.remote_protocol import MIN_REQUEST_BYTES
from transforms.remote_retry import RetryPolicy
from transforms.score import PytorchHandler

_LOG: Final = logging.getLogger(__name__)
SCORERS: Final = ("pytorch", "vertex", "torchserve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares --scorer and what goes with it; `validate_arguments` checks them."""
    group = parser.add_argument_group("scorer")
    group.add_argument(
        "--scorer",
        choices=SCORERS,
        default=SCORERS[0],
        help="where transactions are scored: pytorch loads the model in every worker (the fastest), vertex "
        "and torchserve call a server that has it (default: %(default)s)",
    )
    group.add_argument(
        "--vertex_endpoint",
        type=ENDPOINT,
        metavar="NAME",
        help="endpoint for --scorer=vertex, public, dedicated or private. "
        "Example: projects/my-project/locations/us-central1/endpoints/1234567890",
    )
    group.add_argument(
        "--vertex_psc_address",
        metavar="HOST",
        help="address of a Private Service Connect endpoint in the workers' network. Example: 10.0.1.23",
    )
    group.add_argument(
        "--vertex_api_endpoint",
        metavar="URL",
        help="Vertex AI API other than the regional public one. Example: http://127.0.0.1:9070",
    )
    group.add_argument(
        "--torchserve_url",
        metavar="URL",
        help="inference API for --scorer=torchserve. Example: http://10.0.0.5:8080",
    )
    group.add_argument(
        "--torchserve_model",
        default=MODEL_NAME,
        metavar="NAME",
        help="name under which the model is registered there (default: %(default)s)",
    )
    group.add_argument(
        "--torchserve_model_version",
        metavar="VERSION",
        help="version to ask for (default: the server's default version)",
    )
    group.add_argument(
        "--torchserve_key_file",
        metavar="FILE",
        help="TorchServe's key_file.json, local to the workers or gs://, where its tokens are on; read again "
        "when a key is refused. Example: gs://my-bucket/private/key_file.json",
    )
    _add_limits(group)


def _add_limits(group: Any) -> None:
    defaults = Limits()
    for flag, default, text in (
        ("--remote_rows", defaults.rows, "transactions a request at most"),
        (
            "--remote_bytes",
            defaults.bytes,
            "bytes a request at most; Vertex AI takes 1.5 MB on shared endpoints",
        ),
        (
            "--remote_in_flight",
            defaults.in_flight,
            "requests on their way at the same time, a worker process",
        ),
        (
            "--remote_attempts",
            defaults.policy.attempts,
            "how often a request is sent before the bundle is given back to the runner",
        ),
    ):
        group.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )
    group.add_argument(
        "--remote_timeout_seconds",
        type=float,
        default=defaults.timeout,
        metavar="S",
        help="how long to wait for an answer (default: %(default)s)",
    )


def validate_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with a message that names the flag when the scorer's options do not fit."""
    for scorer, flag in (("vertex", "vertex_endpoint"), ("torchserve", "torchserve_url")):
        if args.scorer == scorer and not getattr(args, flag):
            parser.error(f"--scorer={scorer} needs --{flag}")
    for flag in vars(args):
        prefix = flag.split("_", 1)[0]
        given = getattr(args, flag) != parser.get_default(flag)
        if prefix in SCORERS and "_" in flag and given and args.scorer != prefix:
            parser.error(f"--{flag} goes with --scorer={prefix}, and the scorer is {args.scorer}")
    for flag in ("vertex_api_endpoint", "torchserve_url"):
        value = getattr(args, flag)
        if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            parser.error(f"--{flag}={value}: give a URL such as http://127.0.0.1:8080")
    api = urlsplit(args.vertex_api_endpoint or "")
    if api.scheme == "http" and not is_loopback(api.hostname or ""):
        parser.error(f"--vertex_api_endpoint={args.vertex_api_endpoint}: tokens would travel in clear text")
    torchserve = urlsplit(args.torchserve_url or "")
    if (
        args.torchserve_key_file
        and torchserve.scheme == "http"
        and not is_loopback(torchserve.hostname or "")
    ):
        # No error, unlike with Vertex AI's tokens: TorchServe inside a VPC is commonly served like this.
        _LOG.warning(
            "--torchserve_url=%s: the key of --torchserve_key_file travels in clear text; give an https URL "
            "unless the network between the workers and TorchServe is private",
            args.torchserve_url,
        )
    for flag, minimum in (
        ("remote_rows", 1),
        ("remote_bytes", MIN_REQUEST_BYTES),
        ("remote_in_flight", 1),
        ("remote_attempts", 1),
    ):
        if getattr(args, flag) < minimum:
            parser.error(f"--{flag}={getattr(args, flag)} is below {minimum}")
    if args.remote_timeout_seconds <= 0:
        parser.error(f"--remote_timeout_seconds={args.remote_timeout_seconds} must be over 0")


def handler_from_options(args: argparse.Namespace, manifest: Manifest) -> ModelHandler:
    """The scorer that the options describe, for `transforms.score.Score`.

    Args:
      args: with --model, --output_detail and the options of `add_arguments`, validated.
      manifest: of --model; its thresholds already merged with those given as options.
    """
    if args.scorer == "pytorch":
        return PytorchHandler(args.model, args.output_detail, dict(manifest.thresholds))
    common: dict[str, Any] = {
        "thresholds": dict(manifest.thresholds),
        "model_version": manifest.model_version,
        "detail": args.output_detail,
        "limits": Limits(
            rows=args.remote_rows,
            bytes=args.remote_bytes,
            in_flight=args.remote_in_flight,
            timeout=args.remote_timeout_seconds,
            policy=RetryPolicy(attempts=args.remote_attempts),
        ),
    }
    handler: RemoteHandler
    if args.scorer == "vertex":
        handler = VertexHandler(
            **common,
            endpoint=args.vertex_endpoint,
            api_endpoint=args.vertex_api_endpoint,
            psc_address=args.vertex_psc_address,
        )
    else:
        handler = TorchServeHandler(
            **common,
            url=args.torchserve_url,
            name=args.torchserve_model,
            version=args.torchserve_model_version,
            key_file=args.torchserve_key_file,
        )
    return handler
