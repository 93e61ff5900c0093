"""A server on this machine that speaks the part of Vertex AI's REST API that the commands use.

It keeps models, versions and endpoints, answers with long-running operations, records every request, and
forwards predictions to real servers. Cloud Storage is beside it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.cloud.storage_server import Storage
from tests.http_server import Raw, Refusal, Request, serve

SERVED = "DEDICATED_RESOURCES"
MUTABLE = [
    f"dedicatedResources.{field}"
    for field in ("minReplicaCount", "maxReplicaCount", "requiredReplicaCount", "autoscalingMetricSpecs")
]
"""Of a deployed model, by the reference of MutateDeployedModelRequest."""
CREATED = "2026-01-01T00:00:00Z"


@dataclass
class Vertex:
    """The resources of the server, and the requests that came.

    Attributes:
      url: of the server.
      models: resource name -> its versions, oldest first.
      endpoints: resource name -> resource.
      calls: method, path and body of every request that changes something, in order.
      forward: sends the body of a prediction to a server, given the deployed model that traffic chose.
      storage: Cloud Storage.
      slow: operations that are not done at once.
      refusal: what every request is answered, when set.
    """

    url: str = ""
    models: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    endpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    polls: list[str] = field(default_factory=list)
    forward: Callable[[dict[str, Any], bytes, dict[str, str]], requests.Response] | None = None
    storage: Storage = field(default_factory=Storage)
    slow: bool = False
    refusal: Refusal | None = None
    _operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    _count: int = 0

    def answer(self, request: Request) -> Any:
        if self.refusal:
            raise self.refusal
        for methods, pattern, route in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method in methods.split():
                if request.method != "GET" and "redict" not in request.path:
                    self.calls.append((request.method, request.path, request.json))
                return route(self, match, request)
        raise Refusal(404, "NOT_FOUND", f"{request.method} {request.path}: no such thing")

    def _id(self) -> str:
        self._count += 1
        return str(1000 + self._count)

    def _operation(
        self, parent: str, kind: str, response: dict[str, Any], version: str = "v1"
    ) -> dict[str, Any]:
        name = f"{parent}/operations/{self._id()}"
        types = f"type.googleapis.com/google.cloud.aiplatform.{version}."
        done = {"name": name, "done": True, "response": {"@type": types + kind, **response}}
        if kind == "Empty":
            done["response"] = {"@type": "type.googleapis.com/google.protobuf.Empty"}
        self._operations[name] = done
        return {"name": name, "done": False} if self.slow else done

    def poll(self, match: re.Match[str], request: Request) -> Any:
        self.polls.append(request.path)
        return self._operations[match["name"]]

    # models

    def upload(self, match: re.Match[str], request: Request) -> Any:
        name = request.json.get("parentModel") or f"{match['parent']}/models/{self._id()}"
        known = self.models.setdefault(name, [])
        version = str(len(known) + 1)
        aliases = request.json["model"].get("versionAliases", [])
        if any(set(aliases) - {"default"} & set(other["versionAliases"]) for other in known):
            raise Refusal(400, "INVALID_ARGUMENT", f"alias {aliases} is taken")
        for other in known:
            other["versionAliases"] = [alias for alias in other["versionAliases"] if alias != "default"]
        known.append(
            {
                **request.json["model"],
                "name": name,
                "versionId": version,
                "createTime": CREATED,
                "supportedDeploymentResourcesTypes": [SERVED],
            }
        )
        response = {"model": name, "modelVersionId": version}
        return self._operation(match["parent"], "UploadModelResponse", response)

    def list_models(self, match: re.Match[str], request: Request) -> Any:
        return {"models": _matching((versions[-1] for versions in self.models.values()), request)}

    def get_model(self, match: re.Match[str], request: Request) -> Any:
        name, _, version = match["name"].partition("@")
        for known in reversed(self.models.get(name, [])):
            if not version or version == known["versionId"] or version in known["versionAliases"]:
                return known
        raise Refusal(404, "NOT_FOUND", f"{match['name']} not found")

    def list_versions(self, match: re.Match[str], request: Request) -> Any:
        return {"models": self.models[match["name"]]}

    def delete_model(self, match: re.Match[str], request: Request) -> Any:
        used = [m["model"].partition("@")[0] for e in self.endpoints.values() for m in e["deployedModels"]]
        if match["name"] in used:
            raise Refusal(400, "FAILED_PRECONDITION", f"{match['name']} is deployed")
        del self.models[match["name"]]
        return self._operation(match["parent"], "Empty", {})

    # endpoints

    def create_endpoint(self, match: re.Match[str], request: Request) -> Any:
        name = f"{match['parent']}/endpoints/{self._id()}"
        made = {"name": name, "createTime": CREATED, "deployedModels": [], "trafficSplit": {}}
        self.endpoints[name] = {**request.json, **made}
        if request.json.get("dedicatedEndpointEnabled"):
            self.endpoints[name]["dedicatedEndpointDns"] = self.url.removeprefix("http://")
        return self._operation(match["parent"], "Endpoint", self.endpoints[name])

    def list_endpoints(self, match: re.Match[str], request: Request) -> Any:
        return {"endpoints": _matching(self.endpoints.values(), request)}

    def get_endpoint(self, match: re.Match[str], request: Request) -> Any:
        if match["name"] not in self.endpoints:
            raise Refusal(404, "NOT_FOUND", f"{match['name']} not found")
        return self.endpoints[match["name"]]

    def update_endpoint(self, match: re.Match[str], request: Request) -> Any:
        endpoint = self.endpoints[match["name"]]
        self._check_split(request.json["trafficSplit"], {m["id"] for m in endpoint["deployedModels"]})
        endpoint["trafficSplit"] = request.json["trafficSplit"]
        return endpoint

    def deploy(self, match: re.Match[str], request: Request) -> Any:
        endpoint = self.endpoints[match["name"]]
        deployed = {**request.json["deployedModel"], "id": self._id()}
        self.get_model(re.fullmatch("(?P<name>.*)", deployed["model"]), request)
        split = {
            deployed["id"] if key == "0" else key: share
            for key, share in request.json.get("trafficSplit", {}).items()
        }
        if endpoint.get("network"):
            deployed["privateEndpoints"] = {"predictHttpUri": f"{self.url}/v1/{match['name']}:predict"}
        endpoint["deployedModels"].append(deployed)
        self._check_split(split, {m["id"] for m in endpoint["deployedModels"]})
        endpoint["trafficSplit"] = split
        version = request.path.split("/")[1]
        if not deployed["dedicatedResources"].get("minReplicaCount") and version == "v1":
            raise Refusal(400, "INVALID_ARGUMENT", "min_replica_count must be greater than 0")
        response = {"deployedModel": deployed}
        return self._operation(match["parent"], "DeployModelResponse", response, version)

    def mutate(self, match: re.Match[str], request: Request) -> Any:
        endpoint, wanted = self.endpoints[match["name"]], request.json["deployedModel"]
        deployed = next(model for model in endpoint["deployedModels"] if model["id"] == wanted["id"])
        for path in request.json["updateMask"].split(","):
            parent, _, field = path.partition(".")
            if path not in MUTABLE:
                raise Refusal(400, "INVALID_ARGUMENT", f"{path} is not mutable")
            deployed[parent][field] = wanted[parent][field]
        return self._operation(match["parent"], "MutateDeployedModelResponse", {"deployedModel": deployed})

    def undeploy(self, match: re.Match[str], request: Request) -> Any:
        endpoint, key = self.endpoints[match["name"]], request.json["deployedModelId"]
        rest = [model for model in endpoint["deployedModels"] if model["id"] != key]
        split = request.json.get("trafficSplit") or endpoint["trafficSplit"]
        split = {other: share for other, share in split.items() if share}
        if rest and split.get(key):
            raise Refusal(400, "FAILED_PRECONDITION", f"{key} has traffic")
        endpoint["deployedModels"] = rest
        endpoint["trafficSplit"] = split if rest else {}
        self._check_split(endpoint["trafficSplit"], {model["id"] for model in rest})
        return self._operation(match["parent"], "UndeployModelResponse", {})

    def delete_endpoint(self, match: re.Match[str], request: Request) -> Any:
        if self.endpoints[match["name"]]["deployedModels"]:
            raise Refusal(400, "FAILED_PRECONDITION", "models are deployed")
        del self.endpoints[match["name"]]
        return self._operation(match["parent"], "Empty", {})

    def predict(self, match: re.Match[str], request: Request) -> Any:
        endpoint = self.endpoints[match["name"]]
        split = endpoint["trafficSplit"]
        deployed = max(endpoint["deployedModels"], key=lambda model: split.get(model["id"], 0))
        assert self.forward is not None
        answer = self.forward(deployed, request.raw, request.headers)
        if answer.status_code != 200:
            return Raw(answer.content, code=answer.status_code)
        if request.path.endswith(":rawPredict"):
            return Raw(answer.content, {"X-Vertex-AI-Deployed-Model-Id": deployed["id"]})
        return {**answer.json(), "deployedModelId": deployed["id"], "model": deployed["model"]}

    def _check_split(self, split: dict[str, int], known: set[str]) -> None:
        if set(split) - known or (split and sum(split.values()) != 100):
            raise Refusal(400, "INVALID_ARGUMENT", f"traffic split {split} does not fit {known}")


_PARENT = r"/v1(beta1)?/(?P<parent>projects/[^/]+/locations/[^/]+)"
_MODEL = r"/v1(beta1)?/(?P<name>(?P<parent>projects/[^/]+/locations/[^/]+)/models/[^/:]+)"
_ENDPOINT = r"/v1(beta1)?/(?P<name>(?P<parent>projects/[^/]+/locations/[^/]+)/endpoints/[^/:]+)"

ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", r"/ui/(?P<name>projects/.*/operations/\d+)", Vertex.poll),
    ("POST", _PARENT + "/models:upload", Vertex.upload),
    ("GET", _PARENT + "/models", Vertex.list_models),
    ("GET", _MODEL + ":listVersions", Vertex.list_versions),
    ("GET", _MODEL, Vertex.get_model),
    ("DELETE", _MODEL, Vertex.delete_model),
    ("POST", _PARENT + "/endpoints", Vertex.create_endpoint),
    ("GET", _PARENT + "/endpoints", Vertex.list_endpoints),
    ("GET", _ENDPOINT, Vertex.get_endpoint),
    ("PATCH", _ENDPOINT, Vertex.update_endpoint),
    ("POST", _ENDPOINT + ":deployModel", Vertex.deploy),
    ("POST", _ENDPOINT + ":mutateDeployedModel", Vertex.mutate),
    ("POST", _ENDPOINT + ":undeployModel", Vertex.undeploy),
    ("POST", _ENDPOINT + ":(predict|rawPredict)", Vertex.predict),
    ("DELETE", _ENDPOINT, Vertex.delete_endpoint),
)


def _matching(resources: Any, request: Request) -> list[Any]:
    wanted = re.fullmatch(r'display_name="(.*)"', request.one("filter"))
    return [resource for resource in resources if not wanted or resource["displayName"] == wanted[1]]


@contextmanager
def vertex_server() -> Iterator[Vertex]:
    """Serves on a free port of this machine until the block ends."""
    vertex = Vertex()
    lock = threading.Lock()

    def answer(request: Request) -> Any:
        if "redict" in request.path:
            return vertex.answer(request)  # predictions may overtake each other
        with lock:
            stored = vertex.storage.answer(request)
            return vertex.answer(request) if stored is None else stored

    with serve(answer) as port:
        vertex.url = vertex.storage.url = f"http://127.0.0.1:{port}"
        yield vertex
