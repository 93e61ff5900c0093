"""The dashboard and the alert policies, on a server that keeps to Google's discovery documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloud.monitoring.options import MonitoringOptions
from cloud.resources.__main__ import _left_over, main
from cloud.resources.base import Clients, ResourceError
from cloud.resources.changes import Change, create, delete, inspect_all
from cloud.resources.declared import Names, declare_monitoring
from cloud.resources.monitoring import AlertPolicy, Dashboard
from tests.cloud import discovery
from tests.cloud.google_server import Google
from tests.cloud.guard import Identity

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "google-cloud.md").read_text(encoding="utf-8")
NAMES = Names("local-project", prefix="it-")
PROJECT = "projects/local-project"


@pytest.fixture
def channel(google: Google) -> str:
    return google.monitoring.add("notificationChannels", {"type": "email", "enabled": True})


def declared(channel: str = "", names: Names = NAMES, **limits):
    notify = (channel,) if channel else ()
    return declare_monitoring(names, MonitoringOptions(monitoring=True, notify=notify, **limits))


def do(action, resources) -> list[Change]:
    clients = Clients("local-project")
    try:
        return action(resources, clients, dry_run=False)
    finally:
        clients.close()


def differences(resources) -> dict[str, list[str]]:
    clients = Clients("local-project")
    states = inspect_all(resources, clients)
    clients.close()
    return {
        resource.name: state.lines or [state.status]
        for resource, state in zip(resources, states, strict=True)
        if state.status != "ok"
    }


def test_create_makes_all_and_status_agrees(google: Google, channel):
    resources = declared(channel)
    assert set(differences(resources)) == {resource.name for resource in resources[1:]}
    assert {change.action for change in do(create, resources)} == {"", "created"}
    assert differences(resources) == {}
    assert {change.action for change in do(create, resources)} == {""}
    made = google.monitoring.of("alertPolicies")
    assert [policy["notificationChannels"] for policy in made] == [[channel]] * 7
    assert len(google.monitoring.of("dashboards")) == 1


def test_a_changed_setting_is_shown_and_repaired(google: Google, channel):
    resources = declared(channel)
    do(create, resources)
    (policy,) = (p for p in google.monitoring.of("alertPolicies") if p["userLabels"]["item"] == "backlog_age")
    before = policy["conditions"][0]["name"]
    condition = policy["conditions"][0]["conditionPrometheusQueryLanguage"]
    condition["query"] = condition["query"].replace("> 300", "> 3000")
    policy["enabled"] = False
    policy["notificationChannels"] = [f"{PROJECT}/notificationChannels/77"]
    (board,) = google.monitoring.of("dashboards")
    board["dashboardFilters"] = [{"labelKey": "job_name"}]
    board["mosaicLayout"]["tiles"][0]["widget"]["title"] = "Mine"
    shown = differences(resources)
    assert shown["dashboard"] == ["mosaicLayout.tiles[0].widget.title is Mine, declared Freshness"]
    assert "enabled is False, declared True" in shown["backlog_age"]
    assert next(line for line in shown["backlog_age"] if "query" in line).endswith("> 300")
    assert "notificationChannels is 1 items, declared 2 items" in shown["backlog_age"]
    assert {change.action for change in do(create, resources)} == {"", "repaired"}
    assert differences(resources) == {}
    repaired = google.monitoring.things[policy["name"]]
    # Whoever added a channel is still told, and an open incident goes on.
    assert repaired["notificationChannels"] == [f"{PROJECT}/notificationChannels/77", channel]
    assert repaired["conditions"][0]["name"] == before
    assert google.monitoring.of("dashboards")[0]["dashboardFilters"] == [{"labelKey": "job_name"}]


def test_create_without_notify_keeps_the_channels(google: Google, channel):
    do(create, declared(channel))
    do(create, declared(max_dead_letter_share=0.5))
    assert all(p["notificationChannels"] == [channel] for p in google.monitoring.of("alertPolicies"))


def test_another_limit_is_a_difference(google: Google, channel):
    do(create, declared(channel))
    shown = differences(declared(channel, max_dead_letter_share=0.5))
    assert set(shown) == {"dead_letter_share"}


def test_delete_takes_ours_alone(google: Google, channel):
    theirs = [
        google.monitoring.add("alertPolicies", {"displayName": "theirs"}),
        google.monitoring.add("dashboards", {"displayName": "theirs"}),
    ]
    do(create, declared(channel))
    do(create, declared(channel, names=Names("local-project")))
    changes = do(delete, declared(channel))
    assert {c.action for c in changes if isinstance(c.resource, AlertPolicy | Dashboard)} == {"deleted"}
    assert differences(declared(channel, names=Names("local-project"))) == {}
    do(delete, declared(channel, names=Names("local-project")))
    assert set(google.monitoring.things) == {channel, *theirs}


def test_two_who_create_at_the_same_time_leave_one(google: Google):
    do(create, declared())
    (board,) = google.monitoring.of("dashboards")
    google.monitoring.add("dashboards", board)
    assert differences(declared()) == {"dashboard": ["copies is 2, declared 1"]}
    do(create, declared())
    assert len(google.monitoring.of("dashboards")) == 1


def test_a_change_by_somebody_else_at_the_same_time_is_not_undone(google: Google):
    do(create, declared())
    (board,) = google.monitoring.of("dashboards")
    board["displayName"] = "other"
    clients, dashboard = Clients("local-project"), declared()[0]
    state = dashboard.inspect(clients)
    google.monitoring.things[board["name"]] = {**board, "etag": "new"}
    with pytest.raises(ResourceError, match="somebody else changed it at the same time: run this again"):
        dashboard.repair(clients, state)
    clients.close()


def test_a_channel_that_is_missing_or_tells_nobody_ends_create(google: Google, channel):
    missing = f"{PROJECT}/notificationChannels/99"
    with pytest.raises(ResourceError, match="--notify: expected a notification channel that exists, got"):
        do(create, declared(missing))
    google.monitoring.things[channel]["enabled"] = False
    with pytest.raises(ResourceError, match="enabled is False, declared True; it cannot be changed"):
        do(create, declared(channel))
    assert google.monitoring.of("alertPolicies") == []


def test_delete_without_the_flag_finds_what_an_earlier_one_made(google: Google, capsys):
    do(create, declared())
    clients = Clients("local-project")
    assert len(_left_over(declared(), "--monitoring", clients)) == 8
    clients.close()
    google.monitoring.identity = Identity([])
    clients = Clients("local-project")
    assert _left_over(declared(), "--monitoring", clients) == []
    clients.close()
    assert capsys.readouterr().err.count("Not looked at, as --monitoring is not passed: ") == 2


def test_whoever_makes_the_monitoring_needs_the_documented_roles(google: Google, channel):
    (row,) = re.findall(r"^\| create and delete the monitoring \| (.+) \|$", PAGE, re.M)
    identity = Identity([(role, PROJECT) for role in re.findall(r"`(roles/[\w.]+)`", row)])
    google.monitoring.identity = identity
    do(create, declared(channel))
    do(create, declared(channel, max_dead_letter_share=0.5))
    do(delete, declared(channel)[1:])
    assert identity.denied == []
    used = {permission.rpartition(".")[0] for permission in identity.used}
    assert used == {f"monitoring.{name}" for name in ("alertPolicies", "dashboards", "notificationChannels")}
    google.monitoring.identity = Identity([])
    with pytest.raises(ResourceError, match=r"ask for roles/monitoring\.dashboardEditor"):
        do(create, declared())


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--notify=projects/my-project/notificationChannels/1"], "--notify: expected --monitoring with it"),
        (["--monitoring", "--emulators"], "--monitoring: expected a Google project, got --emulators"),
        (["--no_data_after=5m"], "--no_data_after: expected at least 10m"),
    ],
)
def test_wrong_options_are_refused(flags, reason, capsys):
    assert main(["create", "--project=local-project", *flags]) == 2
    assert reason in capsys.readouterr().err


def test_a_channel_of_another_form_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["create", "--project=local-project", "--monitoring", "--notify=me"])
    reason = "--notify: expected projects/PROJECT/notificationChannels/CHANNEL, got 'me'"
    assert reason in capsys.readouterr().err


def test_the_check_against_the_discovery_document_refuses():
    policy = {"conditions": [{"conditionPrometheusQueryLanguage": {"query": 1, "duration": "5m"}}], "x": 1}
    assert discovery.problems("monitoring.v3", "AlertPolicy", policy) == ["AlertPolicy: unknown fields ['x']"]
    del policy["x"]
    assert len(discovery.problems("monitoring.v3", "AlertPolicy", policy)) == 2
    assert discovery.problems("monitoring.v3", "AlertPolicy", {"severity": "BAD"})
