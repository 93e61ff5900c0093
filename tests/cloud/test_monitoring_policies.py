"""The queries and the texts: each parses, raises in its case alone, and says commands that exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from cloud.monitoring.dashboard import COLUMNS, dashboard, panels
from cloud.monitoring.options import MonitoringOptions
from cloud.monitoring.policies import policies
from cloud.monitoring.queries import Scope
from tests.cloud import discovery
from tests.test_readme import ENTRIES, flags_of
from transforms import metrics, tables
from transforms.bigquery import counters
from transforms.metrics import UNSTORED, VALUES_OUT_OF_RANGE

RUNBOOK = (Path(__file__).resolve().parents[2] / "docs" / "runbook.md").read_text(encoding="utf-8")
SCOPE = Scope("my-project", "us-central1", "my-job", "t", "s")
LIMITS = MonitoringOptions(monitoring=True)
POLICIES = {policy.id: policy for policy in policies(SCOPE, LIMITS, "my-project.anomaly", "it-")}
BOARD = dashboard(SCOPE, LIMITS, "us-central1", "it-")

JOB = 'monitored_resource="dataflow_job",project_id="my-project",region="us-central1",job_name="my-job"'
COUNTER = f'dataflow_googleapis_com:job_user_counter{{{JOB},job_id="1",ptransform="p",metric_name="NAME"}}'
WATERMARK = f"dataflow_googleapis_com:job_data_watermark_age{{{JOB}}}"
OLDEST = (
    "pubsub_googleapis_com:subscription_oldest_unacked_message_age{"
    'monitored_resource="pubsub_subscription",project_id="my-project",subscription_id="s"}'
)


def counter(name: str, values: str) -> dict[str, str]:
    return {"series": COUNTER.replace("NAME", name), "values": values}


ROWS = counter("rows_in", "0+1000x180")
SCORED = counter("rows_scored", "0+1000x180")
FAIR = [ROWS, SCORED, counter("alerts", "0+5x180")]
CASES: list[tuple[str, list[dict[str, str]], set[str]]] = [
    ("a fair feed", [*FAIR, counter("dead_letters", "0+5x180")], set()),
    ("old messages", [*FAIR, {"series": OLDEST, "values": "400x180"}], {"backlog_age"}),
    ("an old watermark", [*FAIR, {"series": WATERMARK, "values": "700x180"}], {"freshness"}),
    ("many letters", [*FAIR, counter("dead_letters", "0+20x180")], {"dead_letter_share"}),
    ("refused rows", [*FAIR, counter("scores.rows_refused", "0+20x180")], {"dead_letter_share"}),
    ("a feed of letters", [ROWS, counter("dead_letters", "0+1000x180")], {"dead_letter_share"}),
    ("few rows", [counter("rows_in", "0+1x180"), counter("dead_letters", "0+0x60 0+1x5 6x120")], set()),
    # Reported for the first time with its first letter, ten minutes before the look.
    ("a first lost letter", [*FAIR, counter(UNSTORED, "_x170 1x10")], {"unstored_letters"}),
    ("an old lost letter", [*FAIR, counter(UNSTORED, "1x180")], set()),
    ("many alerts", [ROWS, SCORED, counter("alerts", "0+20x180")], {"alert_share"}),
    ("few alerts", [ROWS, SCORED, counter("alerts", "0+1x180")], {"alert_share"}),
    ("no alerts at all", [ROWS, SCORED], {"alert_share"}),
    ("shifted values", [*FAIR, counter(VALUES_OUT_OF_RANGE, "0+300x180")], {"drift"}),
    ("some odd values", [*FAIR, counter(VALUES_OUT_OF_RANGE, "0+20x180")], set()),
    ("a silent feed", [counter("rows_in", "1000x180")], {"no_data"}),
    ("no job", [], {"no_data"}),
    ("a job that ended", [counter("rows_in", "0+1000x100")], {"no_data"}),
    (
        "a job launched again",
        [counter("rows_in", "0+1000x140"), *(counter("rows_in", "_x150 0+1000x30"),)],
        set(),
    ),
]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
@pytest.mark.integration
def test_a_policy_is_raised_in_its_case_and_in_no_other(tmp_path: Path):
    rules = [
        {"alert": policy.id, "expr": policy.query, "for": f"{policy.minutes}m"}
        for policy in POLICIES.values()
    ]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    cases: list[dict[str, Any]] = []
    for name, series, raised in CASES:
        if name == "a job launched again":  # another id: another series
            series = [series[0], {**series[1], "series": series[1]["series"].replace('"1"', '"2"')}]
        looks = [
            {"eval_time": "180m", "alertname": rule, "exp_alerts": [{}] if rule in raised else []}
            for rule in POLICIES
        ]
        cases.append({"name": name, "interval": "1m", "input_series": series, "alert_rule_test": looks})
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "test.yml").write_text(json.dumps(content))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def queries() -> list[str]:
    lines = [line for panel in panels(SCOPE, LIMITS, "us-central1") for line in panel.lines]
    return [policy.query for policy in POLICIES.values()] + [line.query for line in lines if not line.aligner]


@pytest.mark.parametrize("query", queries())
def test_a_query_parses_and_asks_for_counters_that_exist(query):
    promql_parser.parse(query)
    known = {value for name, value in vars(metrics).items() if name.isupper() and isinstance(value, str)}
    per_table = [getattr(counters, name) for name in dir(counters) if name.startswith(("ROWS_", "APPEND_"))]
    known |= {f"{table.name}.{name}" for table in tables.TABLES for name in per_table}
    known |= {UNSTORED, VALUES_OUT_OF_RANGE}
    for expression in re.findall(r'metric_name=~"([^"]+)"', query):
        for name in re.split(r"\|(?![^(]*\))", expression):
            assert any(re.fullmatch(name, counter) for counter in known), name


def test_bodies_are_what_googles_documents_describe():
    assert discovery.problems("monitoring.v1", "Dashboard", BOARD) == []
    for policy in POLICIES.values():
        body = policy.body("it-")
        assert discovery.problems("monitoring.v3", "AlertPolicy", body) == []
        assert len(body["documentation"]["content"].encode()) < 8192


def test_tiles_fill_the_grid_without_overlap():
    tiles = BOARD["mosaicLayout"]["tiles"]
    assert len({(tile["xPos"], tile["yPos"]) for tile in tiles}) == len(tiles) == 10
    assert all(tile["xPos"] + tile["width"] <= COLUMNS for tile in tiles)


def test_the_quota_of_connections_follows_the_location_of_the_dataset():
    found = {
        place: panel.limits[0][1]
        for place in ("US", "europe-west1")
        for panel in panels(SCOPE, LIMITS, place)
        if panel.title == "Connections to BigQuery"
    }
    assert found == {"US": 10_000, "europe-west1": 1_000}


@pytest.mark.parametrize("name", POLICIES)
def test_a_text_says_what_to_do_with_commands_that_exist(name):
    text = POLICIES[name].text
    assert [part for part in ("**Meaning.**", "**Look.**", "**Do.**") if part not in text] == []
    lines = re.findall(r"^anomaly (.+)$", text, re.M)
    assert lines
    for line in lines:
        command, *words = shlex.split(line)
        assert command in ENTRIES
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        known = flags_of(command) if words[0].startswith("-") else flags_of(command, words[0])
        if words[0] == "streaming":
            known |= flags_of("streaming")
        assert flags - known == set(), line
    titles = [panel.title for panel in panels(SCOPE, LIMITS, "US")]
    quoted = re.findall(r'[Pp]anels? ((?:"[^"]+"(?:, | and )?)+)', text)
    assert set(re.findall(r'"([^"]+)"', "".join(quoted))) <= set(titles)


def test_the_runbook_has_a_section_for_each_policy_and_names_each_panel():
    titles = [policy.title.capitalize() for policy in POLICIES.values()]
    assert [title for title in re.findall(r"^### (.+)$", RUNBOOK, re.M) if title in titles] == titles
    for panel in panels(SCOPE, LIMITS, "US"):
        assert f"| {panel.title} |" in RUNBOOK
