from __future__ import annotations

import logging

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.worker import sdk_worker_main

from pipelines import wiring


@pytest.fixture(autouse=True)
def _levels():
    levels = {name: logging.getLogger(name).level for name in wiring.QUIET}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines_of_workers(options: PipelineOptions, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log of a pipeline whose workers have set their levels by the options."""
    caplog.set_level(logging.INFO)
    sdk_worker_main._set_log_level_overrides(options.get_all_options())
    with beam.Pipeline("FnApiRunner", options=options) as p:
        _ = p | beam.Create([b"a", b"b"]) | beam.BatchElements()
    return [message for message in caplog.messages if "BatchElements statistics" in message]


def test_workers_log_no_line_a_bundle(caplog):
    options = PipelineOptions([])
    wiring.set_runner(options, "FnApiRunner")
    assert lines_of_workers(options, caplog) == []


def test_a_level_of_the_command_line_wins(caplog):
    options = PipelineOptions(['--sdk_harness_log_level_overrides={"apache_beam.transforms.util":"INFO"}'])
    wiring.set_runner(options, "FnApiRunner")
    assert lines_of_workers(options, caplog) != []
