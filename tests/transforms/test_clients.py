from __future__ import annotations

import pickle

import pytest
from google.auth.credentials import AnonymousCredentials

from common.options import OptionError
from transforms.clients import (
    REST_VARIABLE,
    STORAGE_VARIABLE,
    BigQueryEndpoints,
    EndpointOptions,
)


def test_a_loopback_endpoint_gets_anonymous_credentials():
    client = BigQueryEndpoints("http://127.0.0.1:9050").client("some-project")
    assert isinstance(client._credentials, AnonymousCredentials)
    assert client._connection.API_BASE_URL == "http://127.0.0.1:9050"
    assert client.project == "some-project"


@pytest.mark.parametrize(
    ("rest", "storage", "flag"),
    [
        ("127.0.0.1:9050", None, "--bigquery_endpoint: expected a URL"),
        ("ftp://127.0.0.1", None, "--bigquery_endpoint: expected a URL"),
        ("http://bigquery.internal", None, "credentials would travel in clear text; use https://"),
        (None, "http://127.0.0.1:9060", "--bigquery_storage_endpoint: expected HOST"),
        (None, "", "--bigquery_storage_endpoint: expected HOST"),
    ],
)
def test_a_wrong_address_is_an_error_that_names_the_flag(rest, storage, flag):
    with pytest.raises(OptionError, match=flag):
        BigQueryEndpoints(rest, storage)


def test_endpoints_can_be_sent_to_a_worker():
    endpoints = BigQueryEndpoints("https://bigquery-x.p.googleapis.com", "bigquerystorage-x.p.googleapis.com")
    assert pickle.loads(pickle.dumps(endpoints)) == endpoints


def test_the_flags_default_to_googles_public_endpoints():
    assert EndpointOptions().endpoints() == BigQueryEndpoints()
    assert EndpointOptions(bigquery_storage_endpoint="127.0.0.1:9060").endpoints().storage == "127.0.0.1:9060"


def test_the_environment_fills_in_flags_that_were_not_given_and_is_no_default(monkeypatch):
    environment = {REST_VARIABLE: "http://127.0.0.1:1", STORAGE_VARIABLE: "127.0.0.1:2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = EndpointOptions(bigquery_storage_endpoint="127.0.0.1:3")
    assert given.bigquery_endpoint is None
    assert given.with_environment(environment) == EndpointOptions("http://127.0.0.1:1", "127.0.0.1:3")
    assert EndpointOptions().with_environment({REST_VARIABLE: ""}) == EndpointOptions()


@pytest.mark.parametrize(
    ("rest", "storage", "half"),
    [
        (None, None, False),
        ("http://127.0.0.1:1", "127.0.0.1:2", False),
        ("http://127.0.0.1:1", None, True),
        (None, "localhost:2", True),
        ("http://127.0.0.1:1", "bigquerystorage-x.p.googleapis.com", True),
        ("https://bigquery-x.p.googleapis.com", None, False),
    ],
)
def test_one_local_address_alone_is_half_local(rest, storage, half):
    assert BigQueryEndpoints(rest, storage).half_local is half
