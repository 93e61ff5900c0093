from __future__ import annotations

import pickle

import grpc
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport

from common.clients import (
    CHANNEL_OPTIONS,
    KEEPALIVE,
    REST_VARIABLE,
    STORAGE_VARIABLE,
    BigQueryEndpoints,
    EndpointOptions,
)
from common.options import OptionError


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


@pytest.mark.parametrize("storage", [None, "bigquerystorage-x.p.googleapis.com"])
@pytest.mark.parametrize("kind", ["read", "write"])
def test_channels_to_google_have_the_options_of_those_to_this_machine_and_keepalive(
    monkeypatch, storage, kind
):
    monkeypatch.setattr("google.auth.default", lambda **_: (AnonymousCredentials(), "p"))
    opened = []
    transport = {"read": BigQueryReadGrpcTransport, "write": BigQueryWriteGrpcTransport}[kind]

    def create_channel(host, **settings):
        opened.append((host, settings["options"]))
        return grpc.insecure_channel("127.0.0.1:1", options=settings["options"])

    monkeypatch.setattr(transport, "create_channel", create_channel)
    endpoints = BigQueryEndpoints(storage=storage)
    client = endpoints.read_client() if kind == "read" else endpoints.write_client()
    client.transport.close()
    host = storage or "bigquerystorage.googleapis.com"
    assert opened == [(f"{host}:443", [*CHANNEL_OPTIONS, *KEEPALIVE])]
