"""Fixtures of the tests of the local stack."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from google.cloud import bigquery

from local import demo
from publisher.messages import default_start_time
from tests.local.bigquery_cases import FIELDS
from tests.local.runner_cases import CALLS, GATE, SEEN


@pytest.fixture
def load_source(tmp_path: Path):
    """Makes the source of a load job: files of one format with the contents given, and the job's options."""

    def make(kind, *contents, **config):
        files = []
        for number, content in enumerate(contents):
            files.append(tmp_path / f"file-{number}")
            files[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
        return kind(files, config)

    return make


@pytest.fixture
def table(bigquery_client, dataset):
    """A fresh table with FIELDS; its full id."""
    name = f"{bigquery_client.project}.{dataset}.t"
    bigquery_client.create_table(bigquery.Table(name, FIELDS))
    return name


@pytest.fixture(scope="session")
def card_model(tmp_path_factory):
    """The artifact of card payments that the demo trains."""
    directory = tmp_path_factory.mktemp("cards")
    start = default_start_time() - dt.timedelta(days=demo.PAST_PAYMENTS // demo.PAYMENTS_A_DAY)
    demo.publish_past(directory / "payments.csv", 1, start)
    demo.ensure_card_model(directory / "model", demo.CARD_SPEC, directory / "payments.csv")
    return directory / "model"


@pytest.fixture
def clean_records():
    """Empties the records of the steps of `runner_cases`, and opens their gate at the end."""
    SEEN.clear()
    CALLS.clear()
    GATE.clear()
    yield
    GATE.set()
