"""The server of the custom container.

    GET  $AIP_HEALTH_ROUTE,  /v1/endpoints/E/deployedModels/D           200 once the model is loaded
    POST $AIP_PREDICT_ROUTE, /v1/endpoints/E/deployedModels/D:predict   predictions

Example:
  python -m model.serving.app --model out/model --port 8080
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

import uvicorn

from common.command import command
from model.serving.settings import DEFAULT_MAX_BODY_BYTES, FLAGS, Settings, SettingsError

APP: Final = "model.serving.routes:create_app"
"""By name: every worker imports this module again before its supervisor hears from it, so torch must not be
among its imports."""
KEEP_ALIVE_SECONDS: Final = 620
"""Google's load balancers keep connections for 600 s; a server that closes first makes them answer 502."""
DRAIN_SECONDS: Final = 30
WORKER_SILENCE_SECONDS: Final = 120
"""uvicorn kills a worker process that is silent for longer. A new one is slow to answer while it imports
torch, and uvicorn's own 5 s are not enough where several start on busy cores: none would ever get through."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model.serving.app",
        description="Serve the model over HTTP. Flags win over the environment variables AIP_STORAGE_URI, "
        "AIP_HTTP_PORT, AIP_HEALTH_ROUTE, AIP_PREDICT_ROUTE, MAX_BODY_BYTES and WEB_CONCURRENCY.",
        epilog="Example: python -m model.serving.app --model out/model --port 8080",
    )
    parser.add_argument("--model", help="artifact directory, local or gs:// (default: AIP_STORAGE_URI)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; a container needs 0.0.0.0 (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: AIP_HTTP_PORT, or 8080)")
    parser.add_argument(
        "--workers", type=int, help="server processes (default: WEB_CONCURRENCY, or one per core)"
    )
    parser.add_argument(
        "--max_body_bytes",
        type=int,
        help=f"longer bodies are refused with 413 (default: MAX_BODY_BYTES, or {DEFAULT_MAX_BODY_BYTES})",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m model.serving.app`; runs until it is told to stop."""
    args = _parser().parse_args(argv)
    flags = {
        FLAGS[name]: str(value) for name, value in vars(args).items() if name in FLAGS and value is not None
    }
    try:
        settings = Settings.from_env({**os.environ, **flags})
    except SettingsError as error:
        print(f"model.serving.app: {error}", file=sys.stderr)
        return 2
    os.environ.update(settings.to_env())
    uvicorn.run(
        APP,
        factory=True,
        host=args.host,
        port=settings.port,
        workers=settings.workers,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_worker_healthcheck=WORKER_SILENCE_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
