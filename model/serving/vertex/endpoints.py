"""Endpoints of Vertex AI: create, deploy to, split traffic, look at, take down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from model.serving.vertex.session import MANAGED_LABEL, Actions, VertexError

SHARED: Final = "shared"
DEDICATED: Final = "dedicated"
PEERED: Final = "peered"
PRIVATE_SERVICE_CONNECT: Final = "psc"


@dataclass(frozen=True)
class EndpointWish:
    """The endpoint to deploy to; made when it is not there.

    Attributes:
      name: display name.
      dedicated: with a DNS name of its own, a longer time-out and requests up to 10 MB.
      network: full name of a peered VPC network for a private endpoint.
      psc_projects: projects that may connect to a private endpoint by Private Service Connect.
      labels: put on a new endpoint.
    """

    name: str
    dedicated: bool = False
    network: str | None = None
    psc_projects: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum((self.dedicated, bool(self.network), bool(self.psc_projects))) > 1:
            raise VertexError("give one of --dedicated, --network and --psc_project at most")

    @property
    def kind(self) -> str:
        """SHARED, DEDICATED, PEERED or PRIVATE_SERVICE_CONNECT."""
        if self.network:
            return PEERED
        return PRIVATE_SERVICE_CONNECT if self.psc_projects else DEDICATED if self.dedicated else SHARED

    @property
    def any_kind(self) -> bool:
        """Whether an endpoint that is there may be of any kind, since none was asked for."""
        return self.kind == SHARED


@dataclass(frozen=True)
class Machines:
    """What a deployed model runs on, and when it gets more of it.

    Attributes:
      machine_type: such as n1-standard-2.
      min_replicas: machines that always run.
      max_replicas: machines at most.
      cpu_target: per cent of CPU that autoscaling aims at.
      request_target: requests a minute and machine that autoscaling aims at.
      duty_cycle_target: per cent of accelerator use that autoscaling aims at.
      accelerator_type: such as NVIDIA_TESLA_T4.
      accelerators: how many a machine.
    """

    machine_type: str = "n1-standard-2"
    min_replicas: int = 1
    max_replicas: int = 1
    cpu_target: int | None = None
    request_target: int | None = None
    duty_cycle_target: int | None = None
    accelerator_type: str | None = None
    accelerators: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise VertexError(
                f"--min_replicas {self.min_replicas} --max_replicas {self.max_replicas}: give 1 <= min <= max"
            )
        if self.accelerators < 0:
            raise VertexError(f"--accelerators {self.accelerators}: give 0 or more")
        if bool(self.accelerator_type) != bool(self.accelerators):
            raise VertexError("--accelerator_type and --accelerators go together")
        for flag, target in (
            ("--cpu_target", self.cpu_target),
            ("--duty_cycle_target", self.duty_cycle_target),
        ):
            if target is not None and not 1 <= target <= 100:
                raise VertexError(f"{flag} {target}: give per cent, 1 to 100")
        if self.request_target is not None and self.request_target < 1:
            raise VertexError(f"--request_target {self.request_target}: give requests a minute, 1 or more")
        if self.duty_cycle_target is not None and not self.accelerator_type:
            raise VertexError("--duty_cycle_target needs --accelerator_type and --accelerators")

    def changes(self, deployed: Any) -> list[str]:
        """The flags that ask for something else than what a deployed model has, with both values.

        Autoscaling targets count where one is asked for: without, Vertex AI fills in its own.
        """
        resources = deployed.dedicated_resources
        spec = resources.machine_spec
        targets = {m.metric_name.rsplit("/", 1)[1]: m.target for m in resources.autoscaling_metric_specs}
        # As the API does, which gives a deployment without autoscaling no maximum of its own.
        most = resources.max_replica_count or resources.min_replica_count
        accelerator = spec.accelerator_type.name if spec.accelerator_count else None
        pairs = [
            ("--machine_type", self.machine_type, spec.machine_type),
            ("--min_replicas", self.min_replicas, resources.min_replica_count),
            ("--max_replicas", self.max_replicas, most),
            ("--accelerator_type", self.accelerator_type, accelerator),
            ("--accelerators", self.accelerators, spec.accelerator_count),
        ]
        for flag, wanted, metric in (
            ("--cpu_target", self.cpu_target, "utilization"),
            ("--request_target", self.request_target, "request_count"),
            ("--duty_cycle_target", self.duty_cycle_target, "duty_cycle"),
        ):
            if wanted is not None:
                pairs.append((flag, wanted, targets.get(metric)))
        return [f"{flag} {known}, not {wanted}" for flag, wanted, known in pairs if wanted != known]

    def arguments(self) -> dict[str, Any]:
        """As arguments of the SDK's `deploy`."""
        return {
            "machine_type": self.machine_type,
            "min_replica_count": self.min_replicas,
            "max_replica_count": self.max_replicas,
            "autoscaling_target_cpu_utilization": self.cpu_target,
            "autoscaling_target_request_count_per_minute": self.request_target,
            "autoscaling_target_accelerator_duty_cycle": self.duty_cycle_target,
            "accelerator_type": self.accelerator_type,
            "accelerator_count": self.accelerators or None,
        }


def check_share(traffic: int | None) -> None:
    """Checks a share of the traffic by itself, before anything is asked of Vertex AI.

    Raises:
      VertexError: it is no per cent.
    """
    if traffic is not None and not 0 <= traffic <= 100:
        raise VertexError(f"--traffic {traffic}: give per cent, 0 to 100")


def parse_split(pairs: list[str]) -> dict[str, int]:
    """VERSION=PERCENT texts as shares of the traffic.

    Raises:
      VertexError: a text has another form, a version comes twice, or the shares do not add up to 100.
    """
    split: dict[str, int] = {}
    for pair in pairs:
        version, _, share = pair.rpartition("=")
        if not version or not (share.isascii() and share.isdigit()):
            raise VertexError(f"--split {pair}: give VERSION=PERCENT")
        if version in split:
            raise VertexError(f"--split {pair}: {version} is given twice; give each version once")
        split[version] = int(share)
    if sum(split.values()) != 100:
        raise VertexError(f"--split: shares must add up to 100, not {sum(split.values())}")
    return split


def find(aiplatform: Any, name: str) -> Any:
    """The endpoint of this display name, public or private, or None.

    Raises:
      VertexError: there are several.
    """
    condition = f'display_name="{name}"'
    found = [
        *aiplatform.Endpoint.list(filter=condition),
        *aiplatform.PrivateEndpoint.list(filter=condition),
    ]
    if len(found) > 1:
        raise VertexError(
            f"{len(found)} endpoints are called {name}: {', '.join(e.resource_name for e in found)}"
        )
    return found[0] if found else None


def require(aiplatform: Any, name: str) -> Any:
    """The endpoint of this display name.

    Raises:
      VertexError: there is none, or several.
    """
    endpoint = find(aiplatform, name)
    if endpoint is None:
        raise VertexError(
            f"--endpoint {name}: no such endpoint in this project and region; deploy to it first"
        )
    return endpoint


def kind_of(endpoint: Any) -> str:
    """SHARED, DEDICATED, PEERED or PRIVATE_SERVICE_CONNECT."""
    if endpoint.network:
        return PEERED
    config = endpoint.private_service_connect_config
    if config and config.enable_private_service_connect:
        return PRIVATE_SERVICE_CONNECT
    return DEDICATED if endpoint.dedicated_endpoint_enabled else SHARED


def ensure(aiplatform: Any, wish: EndpointWish, traffic: int | None, actions: Actions) -> Any:
    """The wished-for endpoint, made when it is not there; None when that is only shown.

    Raises:
      VertexError: there is one of this name and another kind than the one asked for, or `traffic`, the
        share that the model to be deployed shall have, is not possible on an empty endpoint.
    """
    endpoint = find(aiplatform, wish.name)
    _check_traffic(deployed_models(endpoint), traffic)
    if endpoint is not None:
        if not wish.any_kind and kind_of(endpoint) != wish.kind:
            raise VertexError(
                f"--endpoint {wish.name} is there as a {kind_of(endpoint)} endpoint, not {wish.kind}; "
                "give another name, or delete it"
            )
        return endpoint
    labels = {**wish.labels, **dict([MANAGED_LABEL])}
    if wish.kind in (SHARED, DEDICATED):
        return actions.do(
            "aiplatform.Endpoint.create",
            aiplatform.Endpoint.create,
            display_name=wish.name,
            labels=labels,
            dedicated_endpoint_enabled=wish.dedicated or None,
        )
    config = None
    if wish.psc_projects:
        config = aiplatform.PrivateEndpoint.PrivateServiceConnectConfig(
            project_allowlist=list(wish.psc_projects)
        )._gapic_private_service_connect_config
    return actions.do(
        "aiplatform.PrivateEndpoint.create",
        aiplatform.PrivateEndpoint.create,
        display_name=wish.name,
        labels=labels,
        network=wish.network,
        private_service_connect_config=config,
    )


def deploy(
    endpoint: Any,
    model: Any,
    model_version: str,
    machines: Machines,
    traffic: int | None,
    service_account: str | None,
    actions: Actions,
) -> bool:
    """Deploys a version, unless it is deployed; False when it was.

    Args:
      endpoint: the SDK's, or None for one that a dry run did not make.
      model: the SDK's Model of the version, or None in a dry run.
      model_version: becomes the display name of the deployed model; remote scorers read it from there.
      machines: what it runs on.
      traffic: per cent of the endpoint's traffic; None for all on an empty endpoint and none on another.
      service_account: that the container runs as.
      actions: makes or shows the call.

    Raises:
      VertexError: `traffic` is under 100 on an empty endpoint, or the version is deployed on other machines.
    """
    deployed = deployed_models(endpoint)
    if model_version in deployed:
        known = deployed[model_version]
        changes = machines.changes(known)
        if service_account and service_account != known.service_account:
            changes.append(f"--service_account {known.service_account or 'not set'}, not {service_account}")
        if changes:
            raise VertexError(
                f"{model_version} is deployed with {'; '.join(changes)}. A deployed version is not changed: "
                "give what it has, or undeploy it first"
            )
        return False
    _check_traffic(deployed, traffic)
    peered = endpoint is not None and kind_of(endpoint) == PEERED
    if peered and deployed:
        raise VertexError(
            "a peered endpoint takes one model; undeploy the other first, or use another endpoint"
        )
    actions.do(
        "Endpoint.deploy",
        endpoint.deploy if endpoint is not None else _never,
        model=model,
        deployed_model_display_name=model_version,
        traffic_percentage=None if peered else traffic or (0 if deployed else 100),
        service_account=service_account,
        **machines.arguments(),
    )
    return True


def deployed_models(endpoint: Any) -> dict[str, Any]:
    """The deployed models of an endpoint by display name, which is the model's version; empty for None."""
    if endpoint is None:
        return {}
    found: dict[str, Any] = {}
    for deployed in endpoint.list_models():
        found[deployed.display_name] = deployed
    return found


def set_traffic(endpoint: Any, split: dict[str, int], actions: Actions) -> bool:
    """Splits the traffic between versions as `parse_split` gives it; False when it is split so already.

    Raises:
      VertexError: a version is not deployed.
    """
    deployed = deployed_models(endpoint)
    unknown = sorted(set(split) - set(deployed))
    if unknown:
        raise VertexError(f"{unknown[0]} is not deployed there; deployed are {', '.join(sorted(deployed))}")
    wanted = {deployed[version].id: share for version, share in split.items() if share}
    if wanted == {key: share for key, share in dict(endpoint.traffic_split).items() if share}:
        return False
    actions.do("Endpoint.update", endpoint.update, traffic_split=wanted)
    return True


def undeploy(endpoint: Any, model_version: str | None, actions: Actions) -> list[str]:
    """Undeploys one version, or all of them when None; gives the versions that were undeployed.

    Raises:
      VertexError: other versions are left and get no traffic.
    """
    deployed = deployed_models(endpoint)
    if model_version is not None and model_version not in deployed:
        return []
    if model_version is None:
        if deployed:
            actions.do("Endpoint.undeploy_all", endpoint.undeploy_all)
        return sorted(deployed)
    share = dict(endpoint.traffic_split).get(deployed[model_version].id, 0)
    if len(deployed) > 1 and share == 100:
        raise VertexError(
            f"{model_version} has all the traffic of {endpoint.display_name}; move it first: traffic --split"
        )
    actions.do("Endpoint.undeploy", endpoint.undeploy, deployed_model_id=deployed[model_version].id)
    return [model_version]


def delete(endpoint: Any, actions: Actions) -> None:
    """Undeploys everything and deletes the endpoint."""
    undeploy(endpoint, None, actions)
    actions.do(f"{endpoint.resource_name}: delete", lambda: endpoint.delete())


def _check_traffic(deployed: dict[str, Any], traffic: int | None) -> None:
    if not deployed and traffic not in (None, 100):
        raise VertexError(f"--traffic {traffic}: the first model of an endpoint takes all of its traffic")


def _never(**_: Any) -> None:
    raise AssertionError("only a dry run has no endpoint")
