"""Short forms of the campaign's scenarios: the pipeline is killed, its sink stops, and nothing is lost."""

from __future__ import annotations

import pytest

from tests.campaign import scenarios

pytestmark = pytest.mark.integration

SHORT = scenarios.Size(fault_seconds=4.0, kills=2, messages=1_500)


@pytest.mark.parametrize("name", ["kill_stream", "pause_bigquery", "restart_bigquery", "fuzz"])
def test_a_fault_loses_nothing(name, model_dir, tmp_path):
    outcome = scenarios.SCENARIOS[name](str(model_dir), tmp_path, SHORT)
    assert outcome.sent > 1_000
    assert outcome.scored > 0
    assert outcome.dead > 0
    assert outcome.lost == 0


def test_a_killed_batch_leaves_no_part_of_a_table(model_dir, tmp_path):
    outcome = scenarios.kill_batch(str(model_dir), tmp_path, SHORT)
    assert outcome.sent > 19_000
    assert outcome.lost == 0
    assert outcome.note == "0 of 2 left a part of a table"
