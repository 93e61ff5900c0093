"""The least that a server on uvicorn does: it answers a request with the request's own body."""

from __future__ import annotations

import argparse
from typing import Any

import uvicorn

from common.command import command


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body; see ASGI."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@command
def main() -> None:
    """Serves until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(app, host="127.0.0.1", port=args.port, access_log=False, http="httptools", lifespan="off")


if __name__ == "__main__":
    main()
