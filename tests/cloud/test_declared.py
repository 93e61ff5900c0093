"""The declaration of a project's resources: their names, their order, the roles that are given."""

from __future__ import annotations

import shlex

import pytest

from cloud.resources.__main__ import main
from cloud.resources.declared import Names, declare, roles
from cloud.resources.gcloud import Gcloud, GcloudError
from cloud.resources.tables import Table
from cloud.resources.topics import Subscription
from common.options import OptionError
from tests.cloud.test_resources import NAMES


def test_names_follow_from_project_region_and_prefix():
    names = Names("p-123456", "europe-west1")
    assert names.bucket_url == "gs://p-123456-anomaly"
    assert names.image == "europe-west1-docker.pkg.dev/p-123456/anomaly/pipelines"
    assert names.account == "anomaly-worker@p-123456.iam.gserviceaccount.com"
    assert NAMES.topic("alerts") == "projects/local-project/topics/it-alerts"
    assert NAMES.bucket_url == "gs://it-local-project-anomaly"


@pytest.mark.parametrize("prefix", ["x", "X-", "1-", "a" * 25 + "-", "a_-"])
def test_a_prefix_of_another_form_is_refused(prefix):
    with pytest.raises(OptionError, match="--prefix: expected"):
        Names("p-123456", prefix=prefix)


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("project", "Bad Project", "it has 'B', ' ' and 'P', expected lower-case letters, digits and -"),
        ("region", "us_central", "it has '_', expected lower-case letters, digits and -"),
        ("region", "europe", "it ends with 'e', expected a digit"),
        ("bucket", "My-Bucket", "it has 'M' and 'B', expected lower-case letters, digits, -, _ and ."),
        ("bucket", "b/path", "it has '/', expected lower-case letters, digits, -, _ and ."),
        ("dataset", "my-ds", "it has '-', expected letters, digits and _"),
        ("dataset", "p.d", "it has '.', expected letters, digits and _"),
        ("prefix", f"{'a' * 16}-", "it has 17 characters, expected 2 to 16"),
    ],
)
def test_a_name_that_breaks_a_rule_is_refused_by_its_flag(flag, value, reason, capsys):
    flags = [f"--{key}={text}" for key, text in {"project": "p-123456", flag: value}.items()]
    assert main(["create", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --{flag}: expected {flag.upper()} such as ")
    assert error.endswith(f"got {value!r}: {reason}\n")


def test_a_project_of_a_domain_has_names_that_google_takes():
    names = Names("example.com:my-project", "europe-west1", prefix="test-")
    assert names.account == "test-anomaly-worker@my-project.example.com.iam.gserviceaccount.com"
    assert names.bucket_url == "gs://test-example-com-my-project-anomaly"
    assert names.image == "europe-west1-docker.pkg.dev/example.com/my-project/test-anomaly/pipelines"
    assert names.dataset_name == "example.com:my-project.anomaly"
    accounts = [r for r in declare(names) if r.kind == "service account"]
    assert {account.project for account in accounts} == {"example.com:my-project"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("stderr", "missing"),
    [
        ("ERROR: (gcloud.x) NOT_FOUND: Requested entity was not found.", True),
        ("ERROR: (gcloud.x) HTTPError 404: The specified bucket does not exist.", True),
        ("ERROR: (gcloud.x) [me] does not have permission to access p404-dev", False),
        ("ERROR: (gcloud.x) PERMISSION_DENIED: denied on 'p404-dev' (or it does not exist)", False),
    ],
)
def test_what_gcloud_may_not_see_is_not_missing(tmp_path, monkeypatch, stderr, missing):
    program = tmp_path / "gcloud"
    program.write_text(f"#!/bin/sh\necho {shlex.quote(stderr)} >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(GcloudError) as raised:
        Gcloud().read("projects", "describe", "p404-dev")
    assert raised.value.is_missing is missing


def test_gcloud_whose_database_another_one_holds_is_asked_again(tmp_path, monkeypatch):
    program, asked = tmp_path / "gcloud", tmp_path / "asked"
    busy = "ERROR: gcloud crashed (OperationalError): database is locked"
    program.write_text(
        f"#!/bin/sh\nif [ -e {asked} ]; then echo '[7]'; else touch {asked}; echo '{busy}' >&2; exit 1; fi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert Gcloud().read("projects", "describe", "my-project") == [7]


def test_every_api_that_the_commands_call_is_declared():
    apis = declare(NAMES)[0].apis  # type: ignore[attr-defined]
    called = ("cloudresourcemanager", "dataflow", "iam", "pubsub", "bigquery", "storage", "cloudbuild")
    assert {f"{api}.googleapis.com" for api in called} <= set(apis)


def test_every_name_is_declared_once_and_needs_only_what_stands_before_it():
    declared = declare(NAMES)
    names = [(resource.kind, resource.title) for resource in declared]
    assert len(set(names)) == len(names)
    known: set[str] = set()
    for resource in declared:
        if isinstance(resource, Subscription):
            assert {resource.topic, resource.dead_letter_topic or resource.topic} <= known
        if isinstance(resource, Table):
            assert resource.dataset in known
        known.add(resource.name)


def test_the_worker_has_these_roles_and_no_others():
    worker = f"serviceAccount:{Names('p-123456').account}"
    given = {(r.name, r.target, r.target_name) for r in roles(Names("p-123456")) if r.member == worker}
    assert given == {
        ("roles/dataflow.worker", "project", "p-123456"),
        ("roles/bigquery.jobUser", "project", "p-123456"),
        ("roles/bigquery.readSessionUser", "project", "p-123456"),
        ("roles/storage.objectAdmin", "bucket", "gs://p-123456-anomaly"),
        ("roles/artifactregistry.reader", "repository", "anomaly"),
        ("roles/pubsub.subscriber", "subscription", "transactions-pipeline"),
        ("roles/pubsub.viewer", "subscription", "transactions-pipeline"),
        ("roles/pubsub.publisher", "topic", "alerts"),
        ("roles/pubsub.viewer", "topic", "alerts"),
    }
    broad = ("owner", "editor", "viewer")
    assert not [r for r in roles(Names("p-123456", vertex=True)) if r.name.removeprefix("roles/") in broad]


def test_exactly_once_and_dead_letters_are_for_the_alerts_alone():
    found = {r.name.rpartition("/")[2]: r for r in declare(NAMES) if isinstance(r, Subscription)}
    assert found["it-alerts-review"].exactly_once
    assert found["it-alerts-review"].dead_letter_topic == NAMES.topic("alerts-dead-letter")
    assert not found["it-transactions-pipeline"].exactly_once
    assert found["it-transactions-pipeline"].dead_letter_topic is None


def test_a_topic_of_scores_is_declared_with_its_roles_where_it_is_asked_for():
    names = Names("p-123456", scores_topic=True)
    assert names.topic("scores") in {resource.name for resource in declare(names)}
    given = {(r.name, r.target_name) for r in roles(names) if r.target == "topic"}
    assert {("roles/pubsub.publisher", "scores"), ("roles/pubsub.viewer", "scores")} <= given
    assert not {resource.name for resource in declare(Names("p-123456"))} & {names.topic("scores")}
