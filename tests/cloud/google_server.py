"""A local server that speaks as much of Google's REST APIs as the real clients and the real gcloud ask for.

Dataflow (jobs, messages, Flex launches), Service Usage, IAM, Resource Manager, Artifact Registry, Compute
Engine (networks, machine types), and the policies of topics and subscriptions; Cloud Storage is beside it.
It keeps everything that it is sent, so that tests can look at what really went over the wire.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from google.cloud.dataflow_v1beta3 import JobState

from tests.cloud.monitoring_server import Monitoring
from tests.cloud.storage_server import Storage
from tests.http_server import Refusal, Request, serve

OVER = ("JOB_STATE_DONE", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_DRAINED", "JOB_STATE_UPDATED")
"""States that a job never leaves."""


def not_found(what: str) -> Refusal:
    return Refusal(404, "NOT_FOUND", f"{what} not found")


@dataclass
class Google:
    """The state of the server, and the requests that it got.

    Attributes:
      url: http://localhost:PORT; Beam takes REST for an endpoint that says localhost.
      requests: method, path and JSON body of every request but those to Cloud Storage, in order.
      display_names: of the accounts that were created here.
      labels: of the repositories that were created here.
      keys: the same with their kmsKeyName, if any.
      granted: the permissions that testIamPermissions of projects answers; None grants all.
      networks: Compute Engine's, by name; the subnetworks by region and name.
      machines: the zones that have a machine type, by its name.
      storage: Cloud Storage.
      monitoring: Cloud Monitoring.
      denied: "launch" refuses Flex launches.
      failures: answers to the next questions for a job, in place of the job.
      built: of a build, once it is asked for the second time.
      course: states that a job goes through, one step each time it is asked for; the last one stays.
    """

    url: str = ""
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    apis: set[str] = field(default_factory=set)
    accounts: set[str] = field(default_factory=set)
    display_names: dict[str, str] = field(default_factory=dict)
    repositories: set[str] = field(default_factory=set)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    granted: set[str] | None = None
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    course: tuple[str, ...] = ("JOB_STATE_RUNNING",)
    endpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    builds: dict[str, dict[str, Any]] = field(default_factory=dict)
    built: dict[str, Any] = field(default_factory=lambda: {"status": "SUCCESS"})
    denied: set[str] = field(default_factory=set)
    failures: list[Refusal] = field(default_factory=list)
    networks: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"default": {"autoCreateSubnetworks": True}}
    )
    subnetworks: dict[str, dict[str, Any]] = field(default_factory=dict)
    machines: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"n2-standard-2": ("us-central1-a",)}
    )
    storage: Storage = field(default_factory=Storage)
    monitoring: Monitoring = field(default_factory=Monitoring)

    def environment(self) -> dict[str, str]:
        """The variables that send gcloud here, without an account."""
        apis = "SERVICEUSAGE IAM CLOUDRESOURCEMANAGER ARTIFACTREGISTRY CLOUDBUILD CLOUDKMS PUBSUB DATAFLOW"
        overrides = dict.fromkeys([*apis.split(), "MONITORING", "STORAGE"], f"{self.url}/")
        overrides["COMPUTE"] = f"{self.url}/compute/v1/"
        return {f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}": url for api, url in overrides.items()}

    def bodies(self, method: str, path: str) -> list[Any]:
        """The bodies of the requests of that method whose path matches."""
        return [b for m, p, b in self.requests if m == method and re.fullmatch(path, p)]

    def answer(self, request: Request) -> Any:
        """The answer of the first route that matches."""
        query = {key: values[0] for key, values in request.query.items()}
        for methods, pattern, route in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method in methods.split():
                return route(self, match, query, request.json)
        raise Refusal(501, "UNIMPLEMENTED", f"{request.method} {request.path} is not served here")

    # One method a group of routes: (server, match, query, body) -> answer.

    def services(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        if match["verb"]:
            self.apis |= set(body.get("serviceIds", ()))
            return {"name": "operations/acf.1", "done": True, "response": {}}
        return {"services": [{"config": {"name": api}, "state": "ENABLED"} for api in sorted(self.apis)]}

    def service_identity(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        email = f"service-123456@gcp-sa-{match['service']}.iam.gserviceaccount.com"
        return {"name": "operations/finished.1", "done": True, "response": {"email": email, "uniqueId": "1"}}

    def get_account(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        if match["email"] not in self.accounts:
            raise Refusal(404, "NOT_FOUND", "Unknown service account")
        named = {"displayName": self.display_names.get(match["email"], "")}
        return {"email": match["email"], "name": match[0], **named}

    def create_account(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        email = f"{body['accountId']}@{match['project']}.iam.gserviceaccount.com"
        self.accounts.add(email)
        self.display_names[email] = body["serviceAccount"]["displayName"]
        return {"email": email}

    def delete_account(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        self.accounts.discard(match["email"])
        return {}

    def get_policy(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        return self.policies.get(match["thing"], {"version": 1, "etag": "BwU="})

    def set_policy(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        self.policies[match["thing"]] = body["policy"]
        return body["policy"]

    def test_permissions(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        asked = body["permissions"]
        return {"permissions": [p for p in asked if self.granted is None or p in self.granted]}

    def network(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        things = self.networks if match["global"] else self.subnetworks
        if match["name"] not in things:
            raise not_found(match["name"])
        return things[match["name"]]

    def machine_types(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        name = query["filter"].partition('"')[2].rstrip('"')
        zones = {f"zones/{zone}": {"machineTypes": [{"name": name}]} for zone in self.machines.get(name, ())}
        return {"items": {"zones/asia-east1-a": {"warning": {"code": "NO_RESULTS_ON_PAGE"}}, **zones}}

    def project(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        return {"projectId": match["project"], "projectNumber": "123456"}

    def get_repository(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        if match["name"] not in self.repositories:
            raise not_found("repository")
        name = match[0].removeprefix("/v1/")
        times = dict.fromkeys(("createTime", "updateTime"), "2026-01-01T00:00:00Z")
        given = {"labels": self.labels.get(match["name"], {}), **self.keys.get(match["name"], {})}
        return {"name": name, "format": "DOCKER", "sizeBytes": "0", **times, **given}

    def create_repository(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        self.repositories.add(query["repositoryId"])
        self.labels[query["repositoryId"]] = body.get("labels", {})
        self.keys[query["repositoryId"]] = {k: v for k, v in body.items() if k == "kmsKeyName"}
        return {"name": "projects/p/locations/l/operations/1", "done": True, "response": {}}

    def delete_repository(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        self.repositories.discard(match["name"])
        return {"name": "projects/p/locations/l/operations/2", "done": True, "response": {}}

    def create_build(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        build_id = f"build-{len(self.builds) + 1}"
        given = {"id": build_id, "status": "WORKING", "projectId": match["project"], "images": []}
        times = {"createTime": "2026-01-01T00:00:00Z", "logUrl": "https://localhost/log"}
        self.builds[build_id] = {
            **body,
            **given,
            **times,
            "name": f"{match[0].removeprefix('/v1/')}/{build_id}",
        }
        kind = "type.googleapis.com/google.devtools.cloudbuild.v1.BuildOperationMetadata"
        metadata = {"@type": kind, "build": self.builds[build_id]}
        return {"name": f"operations/build/{match['project']}/1", "metadata": metadata}

    def get_build(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        build = self.builds[match["id"]]
        self.builds[match["id"]] = build | self.built
        return build

    def get_endpoint(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        if match["name"] not in self.endpoints:
            raise not_found("endpoint")
        return self.endpoints[match["name"]]

    def create_job(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        return self.add_job(body, match["location"])

    def add_job(self, body: dict[str, Any], location: str = "") -> dict[str, Any]:
        """Keeps a job as if it had been submitted; without a location every region has it."""
        job_id = f"2026-01-01_00_00_00-{len(self.jobs) + 1}"
        given = {"id": job_id, "location": location, "createTime": f"2026-01-01T00:00:0{len(self.jobs)}Z"}
        self.jobs[job_id] = {"currentState": "JOB_STATE_PENDING", **body, **given}
        self.messages.setdefault(job_id, [])
        return self.jobs[job_id]

    def list_jobs(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        found = [
            j for j in self.jobs.values() if not match["location"] or j["location"] in (match["location"], "")
        ]
        if query.get("filter") in ("ACTIVE", "3"):
            found = [job for job in found if job["currentState"] not in OVER]
        # Dataflow's lists are summaries: only a job itself has labels and options.
        hidden = ("labels", "environment", "jobMetadata", "tempFiles")
        return {"jobs": [{k: v for k, v in job.items() if k not in hidden} for job in found]}

    def get_job(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        job = self._job(match)
        if job["currentState"] in OVER:
            return job
        wanted = job.get("requestedState")
        course = (wanted.replace("ED", "ING"), wanted) if wanted else self.course
        at = course.index(job["currentState"]) if job["currentState"] in course else -1
        job["currentState"] = course[min(at + 1, len(course) - 1)]
        return job

    def update_job(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        job = self._job(match)
        wanted = body["requestedState"]  # a name from gcloud, a number from the Python client
        job["requestedState"] = wanted if isinstance(wanted, str) else JobState(wanted).name
        return job

    def list_messages(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        return {"jobMessages": self.messages[self._job(match)["id"]]}

    def launch(self, match: re.Match[str], query: dict[str, str], body: Any) -> Any:
        if "launch" in self.denied:
            raise Refusal(403, "PERMISSION_DENIED", "dataflow.jobs.create is missing")
        launched = body["launchParameter"]
        environment = launched.get("environment", {})
        kind = "STREAMING" if environment.get("enableStreamingEngine") else "BATCH"
        given = {"name": launched["jobName"], "labels": environment.get("additionalUserLabels", {})}
        return {"job": self.add_job({**given, "type": f"JOB_TYPE_{kind}"}, match["location"])}

    def _job(self, match: re.Match[str]) -> dict[str, Any]:
        try:
            job = self.jobs[match["id"]]
            if job["location"] not in (match["location"], ""):
                raise KeyError(match["id"])
            return job
        except KeyError:
            raise not_found(f"job {match['id']}") from None


_JOBS = r"/v1b3/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/jobs"
_REPOSITORIES = r"/v1/projects/[^/]+/locations/[^/]+/repositories"
_THING = r"/v1/(?P<thing>projects/[^:]+)"

Route = Callable[[Google, re.Match[str], dict[str, str], Any], Any]
ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("GET POST", r"/v1/projects/[^/]+/services(?P<verb>:batchEnable)?", Google.services),
    (
        "POST",
        r"/v1beta1/projects/[^/]+/services/(?P<service>[a-z]+)\.googleapis\.com:generateServiceIdentity",
        Google.service_identity,
    ),
    ("GET", r"/v1/projects/[^/]+/serviceAccounts/(?P<email>[^/:]+)", Google.get_account),
    ("DELETE", r"/v1/projects/[^/]+/serviceAccounts/(?P<email>[^/:]+)", Google.delete_account),
    ("POST", r"/v1/projects/(?P<project>[^/]+)/serviceAccounts", Google.create_account),
    ("GET POST", rf"{_THING}:getIamPolicy", Google.get_policy),
    ("POST", rf"{_THING}:setIamPolicy", Google.set_policy),
    ("POST", r"/v[13]/(?P<thing>projects/[^:]+):testIamPermissions", Google.test_permissions),
    ("GET", r"/v1/projects/(?P<project>[^/:]+)", Google.project),
    (
        "GET",
        r"/compute/v1/projects/[^/]+/(?:(?P<global>global)/networks|regions/[^/]+/subnetworks)/(?P<name>[^/]+)",
        Google.network,
    ),
    ("GET", r"/compute/v1/projects/[^/]+/aggregated/machineTypes", Google.machine_types),
    ("POST", _REPOSITORIES, Google.create_repository),
    ("GET", rf"{_REPOSITORIES}/(?P<name>[^/:]+)", Google.get_repository),
    ("DELETE", rf"{_REPOSITORIES}/(?P<name>[^/:]+)", Google.delete_repository),
    ("GET", r"/v1/(?P<name>projects/[^/]+/locations/[^/]+/endpoints/[^/:]+)", Google.get_endpoint),
    ("POST", r"/v1/projects/(?P<project>[^/]+)/locations/[^/]+/builds", Google.create_build),
    ("GET", r"/v1/projects/[^/]+/locations/[^/]+/builds/(?P<id>[^/]+)", Google.get_build),
    ("POST", _JOBS, Google.create_job),
    ("GET", _JOBS, Google.list_jobs),
    ("GET", r"/v1b3/projects/[^/]+/jobs(?P<location>):aggregated", Google.list_jobs),
    ("GET", rf"{_JOBS}/(?P<id>[^/]+)", Google.get_job),
    ("PUT", rf"{_JOBS}/(?P<id>[^/]+)", Google.update_job),
    ("GET", rf"{_JOBS}/(?P<id>[^/]+)/messages", Google.list_messages),
    (
        "POST",
        r"/v1b3/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/flexTemplates:launch",
        Google.launch,
    ),
)


@contextmanager
def google_server() -> Iterator[Google]:
    """Serves on a free port of this machine until the block ends."""
    google = Google()
    lock = threading.Lock()

    def answer(request: Request) -> Any:
        if request.path == "/token":  # of a service account key that names this server
            return {"access_token": "local", "token_type": "Bearer", "expires_in": 3600}
        with lock:
            stored = google.storage.answer(request)
            if stored is not None:
                return stored
            google.requests.append((request.method, request.path, request.json))
            monitored = google.monitoring.answer(request)
            if monitored is not None:
                return monitored
            return google.answer(request)

    with serve(answer) as port:
        google.url = google.storage.url = f"http://localhost:{port}"
        yield google
