"""The same server written the usual way, as the yardstick: pydantic models in, FastAPI's own response out."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, create_model

from common.command import command
from model import artifact
from model.inference import use_one_thread
from model.outputs import ANSWER_FIELDS
from model.serving.predictor import Predictor


class Request(BaseModel):
    """A prediction request."""

    instances: list[list[float]]


FIELDS = ANSWER_FIELDS[:14]
_KINDS: dict[str, Any] = {
    name: (list[float] if name == "encoded" or "reconstruction" in name else float, ...) for name in FIELDS
}
Prediction = create_model("Prediction", **_KINDS)


class Answer(BaseModel):
    """The whole answer."""

    predictions: list[Prediction]  # type: ignore[valid-type]


def create_app(model: str) -> FastAPI:
    """The yardstick's application for the artifact `model`."""
    app = FastAPI()
    use_one_thread()
    predictor = Predictor(artifact.read(model))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/predict")
    async def predict(request: Request) -> Answer:
        outputs = predictor.outputs(np.array(request.instances, np.float32), FIELDS)
        rows = zip(*(values.tolist() for values in outputs.values()), strict=True)
        return Answer(predictions=[Prediction(**dict(zip(FIELDS, row, strict=True))) for row in rows])

    return app


@command
def main() -> None:
    """Serves until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(create_app(args.model), host="127.0.0.1", port=args.port, access_log=False)


if __name__ == "__main__":
    main()
