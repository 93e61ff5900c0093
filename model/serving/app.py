"""Serves a model over HTTP, as the custom container does on Vertex AI.

    GET  $AIP_HEALTH_ROUTE,  /v1/endpoints/E/deployedModels/D           200 once the model is loaded
    POST $AIP_PREDICT_ROUTE, /v1/endpoints/E/deployedModels/D:predict   predictions
    GET  /v2/..., POST /v2/models/NAME/infer                            the Open Inference Protocol
    GET  /metadata, /metrics, /openapi.json                             the model, Prometheus, the API

Flags win over the environment variables AIP_STORAGE_URI, AIP_HTTP_PORT, AIP_HEALTH_ROUTE, AIP_PREDICT_ROUTE,
MAX_BODY_BYTES, MAX_ANSWER_BYTES, MAX_ROWS, MAX_WAIT_MILLIS, CLIENT_SECONDS, LAME_DUCK_SECONDS,
MODEL_REFRESH_SECONDS, WEB_CONCURRENCY, ACCESS_LOG and REQUEST_ID.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from common.command import MissingExtraError, Parser, command
from common.options import add_options
from model.serving.options import FLAGS, ServerOptions

EXAMPLES: Final = """
  anomaly serve --model out/model
  anomaly serve --model gs://my-bucket/model --host 0.0.0.0 --port 8080 --workers 2
"""
APP: Final = "model.serving.routes:create_app"
"""By name: every worker imports this module again before its supervisor hears from it, so torch must not be
among its imports."""
KEEP_ALIVE_SECONDS: Final = 620
"""Google's load balancers keep connections for 600 s; a server that closes first makes them answer 502."""
DRAIN_SECONDS: Final = 30


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `anomaly serve`: runs until a signal ends it."""
    parser = Parser("anomaly serve", __doc__, EXAMPLES)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; a container needs 0.0.0.0 (default: %(default)s)",
    )
    add_options(parser, ServerOptions)
    # A flag that is absent leaves its option to the environment.
    parser.set_defaults(**dict.fromkeys(FLAGS))
    args = parser.parse_args(argv)
    options = ServerOptions.from_env(**{name: getattr(args, name) for name in FLAGS})
    try:
        from model.serving import metrics, supervisor
    except ImportError as error:
        raise MissingExtraError("anomaly serve", "serve", error) from error
    os.environ.update(options.to_env())
    config = supervisor.Config(
        APP,
        options.client_seconds,
        options.lame_duck_seconds,
        workers=options.workers,
        host=args.host,
        port=options.port,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    with metrics.directory():
        return supervisor.run(config)


if __name__ == "__main__":
    sys.exit(main())
