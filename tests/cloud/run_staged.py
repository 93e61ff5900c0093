"""Runs a pipeline that was staged for Dataflow, in an environment that has only the staged package.

    python run_staged.py PIPELINE.pb [--messages FILE --published FILE]

What Dataflow does with the staged pipeline, Beam's FnApiRunner does here: its SDK harness unpickles every
DoFn of the proto and runs it. Two kinds of steps are Dataflow's own, and are put in: the read from Pub/Sub
gets the messages of a file (one base64 PubsubMessage proto a line), the write to it appends to a file.
"""

from __future__ import annotations

import argparse
import base64
import sys
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

IMPULSE = "impulse_of_the_messages"


def step(function: object) -> proto.FunctionSpec:
    """The spec of a ParDo that calls `function` for each element."""
    pipeline = beam.Pipeline(FnApiRunner())
    _ = pipeline | beam.Impulse() | beam.FlatMap(function).with_output_types(bytes)
    transforms = pipeline.to_runner_api().components.transforms.values()
    return next(t.spec for t in transforms if t.spec.urn == common_urns.primitives.PAR_DO.urn)


def put_in(pipeline: proto.Pipeline, messages: Path, published: Path) -> None:
    """Replaces the steps that are Dataflow's own."""

    def read(_: bytes) -> list[bytes]:
        return [base64.b64decode(line) for line in messages.read_text().splitlines()]

    def write(message: bytes) -> list[bytes]:
        with published.open("a") as file:
            file.write(base64.b64encode(message).decode() + "\n")
        return []

    parts = pipeline.components
    (environment,) = parts.environments
    for transform in list(parts.transforms.values()):
        if transform.spec.urn == common_urns.composites.PUBSUB_READ.urn:
            (output,) = transform.outputs.values()
            parts.pcollections[IMPULSE].CopyFrom(parts.pcollections[output])
            parts.pcollections[IMPULSE].unique_name = IMPULSE
            impulse = parts.transforms[IMPULSE]
            impulse.unique_name = IMPULSE
            impulse.spec.urn = common_urns.primitives.IMPULSE.urn
            impulse.outputs["out"] = IMPULSE
            pipeline.root_transform_ids.insert(0, IMPULSE)
            transform.spec.CopyFrom(step(read))
            transform.inputs["in"] = IMPULSE
            transform.environment_id = environment
        elif transform.spec.urn == common_urns.composites.PUBSUB_WRITE.urn:
            transform.spec.CopyFrom(step(write))
            transform.environment_id = environment
    for collection in parts.pcollections.values():
        collection.is_bounded = proto.IsBounded.BOUNDED


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--messages", type=Path)
    parser.add_argument("--published", type=Path)
    args = parser.parse_args()
    for name in ("pipelines", "transforms", "model", "features"):
        found = Path(__import__(name).__file__ or "")
        if not found.is_relative_to(sys.prefix):
            sys.exit(f"{name} was imported from {found}, which the staged package did not bring")
    pipeline = proto.Pipeline.FromString(args.pipeline.read_bytes())
    for environment in pipeline.components.environments.values():
        environment.urn = python_urns.EMBEDDED_PYTHON
        environment.payload = b""
    if args.messages:
        put_in(pipeline, args.messages, args.published)
    FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([])).wait_until_finish()


if __name__ == "__main__":
    main()
