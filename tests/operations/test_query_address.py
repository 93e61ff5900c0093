"""Named queries where no server answers: which address is named, and how soon."""

import re

import pytest
import requests

from operations import query


def test_an_address_without_a_server_is_named_soon(monkeypatch, capsys):
    monkeypatch.setattr(query, "LOOK_SECONDS", 1)
    monkeypatch.setattr(query, "RETRY", query.RETRY.with_timeout(1))
    assert (
        query.main(["latency", "--dataset=my-project.anomaly", "--bigquery_endpoint=http://127.0.0.1:1"]) == 1
    )
    assert "expected an answer at http://127.0.0.1:1 within 1 s, got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("endpoint", "emulator", "advice"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:2", "at http://127.0.0.1:1 .*Check --bigquery_endpoint and"),
        (None, "http://127.0.0.1:2", "at http://127.0.0.1:2 .*Check BIGQUERY_EMULATOR_HOST and"),
        (None, None, "at https://bigquery.googleapis.com .*Check --bigquery_endpoint and"),
    ],
)
def test_the_address_that_did_not_answer_is_named(monkeypatch, endpoint, emulator, advice):
    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    if emulator:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", emulator)
    text = query.explain(requests.ConnectionError("refused"), "my-project.anomaly", endpoint)
    assert re.search(advice, text)
