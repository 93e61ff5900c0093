"""The counters of a job, whichever of committed and attempted values its runner reports."""

import re
from pathlib import Path

import pytest
from apache_beam.metrics.execution import MetricKey, MetricResult
from apache_beam.metrics.metric import MetricResults
from apache_beam.metrics.metricbase import MetricName
from apache_beam.runners.runner import PipelineResult, PipelineState

from model.thresholds import SEVERITIES
from transforms import files, history, history_build, metrics, observations, remote, windows
from transforms.bigquery import counters, source

RUNBOOK = (Path(__file__).resolve().parents[2] / "docs" / "runbook.md").read_text(encoding="utf-8")


class Finished(PipelineResult, MetricResults):
    """A job with one counter, which two steps count."""

    def __init__(self, committed, attempted):
        super().__init__(PipelineState.DONE)
        name = MetricName(metrics.NAMESPACE, metrics.ROWS_IN)
        self._counters = [MetricResult(MetricKey(step, name), committed, attempted) for step in ("a", "b")]

    def metrics(self):
        return self

    def query(self, filter=None):
        return {"counters": self._counters}


@pytest.mark.parametrize(
    ("committed", "attempted", "expected"),
    [
        (3, 3, 6),
        (3, None, 6),  # Beam's embedded job server, and so --runner=PortableRunner
        (None, 3, 6),
        (3, 5, 6),  # Dataflow, where a bundle was run again
        (None, None, 0),
    ],
)
def test_rows_count_once_whatever_a_runner_reports(committed, attempted, expected):
    assert metrics.totals(Finished(committed, attempted)) == {metrics.ROWS_IN: expected}


def names_of(module, *without):
    """The texts of a module's constants."""
    constants = {name: value for name, value in vars(module).items() if name.isupper()}
    return {value for name, value in constants.items() if isinstance(value, str) and name not in without}


def test_the_runbook_says_of_each_metric_what_it_means():
    of_tables = names_of(counters, "THROTTLING_NAMESPACE")
    names = names_of(metrics, "NAMESPACE") | {f"TABLE.{name}" for name in of_tables}
    names |= {history.KEYS, history.LATE, history.KNOWN, history.WRITTEN, history_build.COUNTED}
    names |= {windows.TOO_LATE, files.BLANK_LINES, source.ROWS_READ, "dead_letters.STAGE.FIELD"}
    names |= {remote.CALLS, remote.RETRIES, remote.REJECTED, remote.WAITED, remote.THROTTLED}
    names |= {remote.ROWS, remote.OTHER_VERSION, *(f"alerts_{severity}" for severity in SEVERITIES[1:])}
    first_cells = re.findall(r"^\| (`[^|]+`) \|", RUNBOOK, re.MULTILINE)
    explained = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    assert names - explained == set()
    (row,) = [line for line in RUNBOOK.splitlines() if line.startswith("| `dead_letters.STAGE.FIELD`")]
    assert observations.FIELDS | {observations.OTHER} <= set(re.findall(r"`([^`]+)`", row))
