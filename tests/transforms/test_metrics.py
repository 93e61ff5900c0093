"""The counters of a job, whichever of committed and attempted values its runner reports."""

import pytest
from apache_beam.metrics.execution import MetricKey, MetricResult
from apache_beam.metrics.metric import MetricResults
from apache_beam.metrics.metricbase import MetricName
from apache_beam.runners.runner import PipelineResult, PipelineState

from transforms import metrics


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
