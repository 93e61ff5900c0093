"""BigQuery and Pub/Sub behind a guard that knows who calls: a local stack in which permissions count.

The emulators let everybody do everything. The guard stands before them and passes a call on where the
identity has the permissions that Google's pages name for it, each on the thing that the call is about.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Final
from urllib.parse import urlencode

import grpc
import requests
import sqlglot
from google.cloud.bigquery_storage_v1 import types as storage
from google.pubsub_v1 import types as pubsub
from sqlglot import exp

from local.endpoints import Endpoints
from tests.http_server import Raw, Refusal, Request, serve

_VIEW: Final = ("bigquery.datasets.get", "bigquery.tables.get", "bigquery.tables.list")
_EDIT: Final = (
    *(f"bigquery.tables.{verb}" for verb in ("create", "delete", "getData", "update", "updateData")),
    *("bigquery.datasets.create", *_VIEW),
)
ROLES: Final[dict[str, tuple[str, ...]]] = {
    "roles/bigquery.metadataViewer": _VIEW,
    "roles/bigquery.dataViewer": (*_VIEW, "bigquery.tables.getData"),
    "roles/bigquery.dataEditor": _EDIT,
    "roles/bigquery.jobUser": ("bigquery.jobs.create",),
    "roles/bigquery.readSessionUser": ("bigquery.readsessions.create", "bigquery.readsessions.getData"),
    "roles/bigquery.admin": (
        *(*_EDIT, "bigquery.datasets.update", "bigquery.datasets.delete", "bigquery.jobs.create"),
        *("bigquery.readsessions.create", "bigquery.readsessions.getData"),
    ),
    "roles/pubsub.admin": tuple(
        f"pubsub.{things}.{verb}"
        for things in ("topics", "subscriptions")
        for verb in ("create", "get", "update", "delete", "publish", "consume", "attachSubscription")
    ),
    "roles/pubsub.viewer": ("pubsub.topics.get", "pubsub.subscriptions.get"),
    "roles/pubsub.publisher": ("pubsub.topics.publish",),
    "roles/pubsub.subscriber": ("pubsub.subscriptions.consume",),
    "roles/monitoring.alertPolicyEditor": tuple(
        f"monitoring.alertPolicies.{verb}" for verb in ("create", "delete", "get", "list", "update")
    ),
    "roles/monitoring.dashboardEditor": tuple(
        f"monitoring.dashboards.{verb}" for verb in ("create", "delete", "get", "list", "update")
    ),
    "roles/monitoring.notificationChannelViewer": (
        "monitoring.notificationChannels.get",
        "monitoring.notificationChannels.list",
    ),
}
"""Permissions of roles, as far as the guard asks for them (docs.cloud.google.com/iam/docs/roles-permissions).

WRITER of a dataset is roles/bigquery.dataEditor on it. A role that is not here has none of these permissions.
"""

_TABLE: Final = r"/bigquery/v2/projects/(?P<p>[^/]+)/datasets/(?P<d>[^/]+)/tables"
_DATASET: Final = r"/bigquery/v2/projects/(?P<p>[^/]+)/datasets"
REST: Final = (
    ("GET", rf"{_TABLE}/[^/]+", "bigquery.tables.get"),
    ("GET", _TABLE, "bigquery.tables.list"),
    ("GET", rf"{_TABLE}/[^/]+/data", "bigquery.tables.getData"),
    ("POST", rf"{_TABLE}/[^/]+/insertAll", "bigquery.tables.updateData"),
    ("POST", _TABLE, "bigquery.tables.create"),
    ("PATCH PUT", rf"{_TABLE}/[^/]+", "bigquery.tables.update"),
    ("DELETE", rf"{_TABLE}/[^/]+", "bigquery.tables.delete"),
    ("GET", rf"{_DATASET}/(?P<d>[^/]+)", "bigquery.datasets.get"),
    ("PATCH PUT", rf"{_DATASET}/(?P<d>[^/]+)", "bigquery.datasets.update"),
    ("DELETE", rf"{_DATASET}/(?P<d>[^/]+)", "bigquery.datasets.delete"),
    # The right to make a dataset is one on the project: a role on a dataset does not carry it.
    ("POST", _DATASET, "bigquery.datasets.create"),
)
"""Method, path and permission of BigQuery's REST API, but for jobs; a `d` in the path is the dataset."""

_STORE: Final = "bigquery.tables.updateData"
_CONSUME: Final = "pubsub.subscriptions.consume"
RPCS: Final[dict[str, tuple[str, Any, str]]] = {
    "BigQueryWrite/CreateWriteStream": (_STORE, storage.CreateWriteStreamRequest, "parent"),
    "BigQueryWrite/AppendRows": (_STORE, storage.AppendRowsRequest, "write_stream"),
    "BigQueryWrite/FinalizeWriteStream": (_STORE, storage.FinalizeWriteStreamRequest, "name"),
    "BigQueryWrite/BatchCommitWriteStreams": (_STORE, storage.BatchCommitWriteStreamsRequest, "parent"),
    "BigQueryRead/CreateReadSession": (
        *("bigquery.readsessions.create", storage.CreateReadSessionRequest),
        "parent",
    ),
    "BigQueryRead/ReadRows": ("bigquery.readsessions.getData", storage.ReadRowsRequest, "read_stream"),
    "Publisher/GetTopic": ("pubsub.topics.get", pubsub.GetTopicRequest, "topic"),
    "Publisher/CreateTopic": ("pubsub.topics.create", pubsub.Topic, "name"),
    "Publisher/DeleteTopic": ("pubsub.topics.delete", pubsub.DeleteTopicRequest, "topic"),
    "Subscriber/CreateSubscription": ("pubsub.subscriptions.create", pubsub.Subscription, "name"),
    "Subscriber/DeleteSubscription": (
        *("pubsub.subscriptions.delete", pubsub.DeleteSubscriptionRequest),
        "subscription",
    ),
    "Publisher/Publish": ("pubsub.topics.publish", pubsub.PublishRequest, "topic"),
    "Subscriber/GetSubscription": (
        *("pubsub.subscriptions.get", pubsub.GetSubscriptionRequest),
        "subscription",
    ),
    "Subscriber/Pull": (_CONSUME, pubsub.PullRequest, "subscription"),
    "Subscriber/Acknowledge": (_CONSUME, pubsub.AcknowledgeRequest, "subscription"),
    "Subscriber/ModifyAckDeadline": (_CONSUME, pubsub.ModifyAckDeadlineRequest, "subscription"),
}
"""Permission of a gRPC method, its request, and the field of the request that names the thing."""

Need = tuple[str, str]
"""A permission and the thing it is needed on: "projects/P", "projects/P/datasets/D" and so on."""


@dataclass
class Identity:
    """An account with roles on things.

    Attributes:
      grants: role and thing; a role on a project holds for everything in it.
      used: the permissions that its calls needed so far.
      denied: the calls that were refused, each with its permission and thing.
    """

    grants: Sequence[tuple[str, str]]
    used: set[str] = field(default_factory=set)
    denied: list[Need] = field(default_factory=list)

    def denial(self, needs: Sequence[Need]) -> str:
        """Google's words where a permission is missing; otherwise ""."""
        for permission, thing in needs:
            self.used.add(permission)
            if "/datasets/_" in thing:  # the result of a query, which belongs to whoever ran it
                continue
            if not any(
                permission in ROLES.get(role, ()) and f"{thing}/".startswith(f"{place}/")
                for role, place in self.grants
            ):
                self.denied.append((permission, thing))
                return f"Access Denied: {thing}: Permission {permission} denied (or it may not exist)."
        return ""


def rest_needs(request: Request) -> list[Need]:
    """The permissions that a request to BigQuery takes."""
    jobs = re.fullmatch(
        r"(?:/upload|/resumable/upload)?/bigquery/v2/projects/([^/]+)/(jobs|queries)", request.path
    )
    if jobs and request.method == "POST":
        return job_needs(jobs[1], job_body(request))
    if re.fullmatch(r"/bigquery/v2/projects/[^/]+/(jobs|queries)/[^/]+", request.path):
        return []  # whoever made a job may look at it and at its result
    for methods, pattern, permission in REST:
        match = re.fullmatch(pattern, request.path)
        if match and request.method in methods.split():
            dataset = match.groupdict().get("d")
            return [(permission, f"projects/{match['p']}" + (f"/datasets/{dataset}" if dataset else ""))]
    raise Refusal(501, "UNIMPLEMENTED", f"{request.method} {request.path}: the guard does not know it")


def job_body(request: Request) -> dict[str, Any]:
    """The job, or the query, of a request; an upload has it in its first part."""
    kind = request.headers.get("content-type", "")
    boundary = re.search(r'boundary="?([^";]+)', kind)
    raw = request.raw
    if boundary:
        raw = raw.split(f"--{boundary[1]}".encode())[1].partition(b"\r\n\r\n")[2]
    body: dict[str, Any] = json.loads(raw)
    return body


def job_needs(project: str, body: dict[str, Any]) -> list[Need]:
    """The permissions of a job: to run it, and those of what it reads and writes."""
    needs = [("bigquery.jobs.create", f"projects/{project}")]
    configuration = body.get("configuration", {"query": body})
    if "load" in configuration:
        table = configuration["load"]["destinationTable"]
        place = f"projects/{table['projectId']}/datasets/{table['datasetId']}"
        return needs + [(f"bigquery.tables.{verb}", place) for verb in ("create", "updateData", "update")]
    return needs + statement_needs(project, configuration["query"]["query"])


def statement_needs(project: str, sql: str) -> list[Need]:
    """The permissions of a statement: the data of every table it reads, the making of what it creates."""
    (statement,) = sqlglot.parse(sql, read="bigquery")
    assert statement is not None
    created = statement.this.this if isinstance(statement.this, exp.Schema) else statement.this
    names = {cte.alias for cte in statement.find_all(exp.CTE)}
    needs: list[Need] = []
    if isinstance(statement, exp.Create):
        verbs = ("create", "update") if statement.args.get("replace") else ("create",)
        needs += [(f"bigquery.tables.{verb}", _place(created, project)) for verb in verbs]
    elif not isinstance(statement, exp.Query):
        raise Refusal(501, "UNIMPLEMENTED", f"{statement.key}: the guard does not know it")
    for table in statement.find_all(exp.Table):
        if not (table is created or (table.name in names and not table.db)):
            needs.append(("bigquery.tables.getData", _place(table, project)))
    return needs


def _place(table: exp.Table, project: str) -> str:
    *start, dataset, _ = ".".join(part.name for part in table.parts).split(".")
    return f"projects/{'.'.join(start) or project}/datasets/{dataset}"


def rpc_needs(method: str, body: bytes) -> list[Need]:
    """The permissions of a gRPC call, by its first message."""
    permission, kind, name = RPCS[method]
    request = kind.deserialize(body)
    needs = [(permission, getattr(request, name))]
    if kind is storage.CreateReadSessionRequest:
        needs.append(("bigquery.tables.getData", request.read_session.table))
    if method == "Subscriber/CreateSubscription":
        needs.append(("pubsub.topics.attachSubscription", request.topic))
    return needs


class _Rpcs(grpc.GenericRpcHandler):
    """Passes every method on as bytes: on the wire, all of them are streams."""

    def __init__(self, channel: grpc.Channel, identity: Identity) -> None:
        self._channel = channel
        self._identity = identity

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        service, _, name = details.method.rpartition("/")
        method = f"{service.rpartition('.')[2]}/{name}"

        def forward(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            first = next(messages)
            denial = self._identity.denial(rpc_needs(method, first))
            if denial:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, denial)
            call = self._channel.stream_stream(details.method)(chain([first], messages))
            context.add_callback(call.cancel)
            try:
                yield from call
            except grpc.RpcError:
                context.set_trailing_metadata(call.trailing_metadata())
                context.abort(call.code(), call.details())

        return grpc.stream_stream_rpc_method_handler(forward)


@contextlib.contextmanager
def _guarded_grpc(address: str, identity: Identity) -> Iterator[str]:
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, unlimited) as channel, ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool, [_Rpcs(channel, identity)], options=unlimited)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@contextlib.contextmanager
def guarded(stack: Endpoints, identity: Identity) -> Iterator[Endpoints]:
    """Gives the addresses of the stack as they are for an identity."""
    assert stack.pubsub is not None
    assert stack.bigquery_storage is not None
    with contextlib.ExitStack() as resources:
        session = resources.enter_context(requests.Session())
        session.trust_env = False

        def answer(request: Request) -> Raw:
            denial = identity.denial(rest_needs(request))
            if denial:
                refusal = Refusal(403, "PERMISSION_DENIED", denial)
                refusal.body["error"]["errors"] = [{"reason": "accessDenied", "message": denial}]
                raise refusal
            url = f"{stack.bigquery}{request.path}?{urlencode(request.query, doseq=True)}"
            kept = ("content-type", "if-match", "x-upload-content-type", "x-goog-upload-protocol")
            headers = {name: value for name, value in request.headers.items() if name in kept}
            reply = session.request(request.method, url, data=request.raw, headers=headers, timeout=60)
            passed = ("Content-Type", "Location", "ETag")
            shown = {name: value for name, value in reply.headers.items() if name in passed}
            return Raw(reply.content, shown, reply.status_code)

        port = resources.enter_context(serve(answer))
        yield replace(
            stack,
            bigquery=f"http://127.0.0.1:{port}",
            bigquery_storage=resources.enter_context(_guarded_grpc(stack.bigquery_storage, identity)),
            pubsub=resources.enter_context(_guarded_grpc(stack.pubsub, identity)),
        )
