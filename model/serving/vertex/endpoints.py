"""Endpoints of Vertex AI: create, deploy to, split traffic, describe, delete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from common.options import OptionError, option
from common.values import at_least
from model.serving.vertex import prices
from model.serving.vertex.session import MANAGED_LABEL, Actions, VertexError, parse_labels

SHARED: Final = "shared"
DEDICATED: Final = "dedicated"
PEERED: Final = "peered"
PRIVATE_SERVICE_CONNECT: Final = "psc"


@dataclass(frozen=True)
class EndpointOptions:
    """The endpoint to deploy to; made when it does not exist."""

    endpoint: str = option(help="display name; made when it does not exist")
    dedicated: bool = option(False, help="new endpoint with a DNS name of its own")
    network: str | None = option(None, help="new private endpoint in this peered network, by its full name")
    psc_project: tuple[str, ...] = option(
        (),
        action="append",
        metavar="PROJECT",
        help="new private endpoint that this project may reach by Private Service Connect; may be repeated",
    )
    label: tuple[str, ...] = option(
        (), action="append", metavar="KEY=VALUE", help="of a new endpoint; may be repeated"
    )

    def __post_init__(self) -> None:
        if sum((self.dedicated, bool(self.network), bool(self.psc_project))) > 1:
            raise OptionError("--dedicated, --network, --psc_project: expected at most one of them")
        parse_labels(self.label)

    @property
    def kind(self) -> str:
        """SHARED, DEDICATED, PEERED or PRIVATE_SERVICE_CONNECT."""
        if self.network:
            return PEERED
        return PRIVATE_SERVICE_CONNECT if self.psc_project else DEDICATED if self.dedicated else SHARED

    @property
    def any_kind(self) -> bool:
        """True where the options name no kind, so that an existing endpoint may be of any."""
        return self.kind == SHARED


class Change(NamedTuple):
    """A flag whose value differs from that of a deployed model."""

    flag: str
    expected: Any
    actual: Any

    def __str__(self) -> str:
        return f"{self.flag} {self.actual}, not {self.expected}"


@dataclass(frozen=True)
class MachineOptions:
    """The machines of a deployed model, and the targets of their autoscaling."""

    machine_type: str = option("n1-standard-2", help="default: %(default)s")
    min_replicas: int = option(1, type=at_least(1), metavar="N", help="default: %(default)s")
    max_replicas: int = option(1, type=at_least(1), metavar="N", help="default: %(default)s")
    cpu_target: int | None = option(
        None, type=at_least(1, 100), metavar="PERCENT", help="autoscale on CPU use"
    )
    request_target: int | None = option(
        None, type=at_least(1), metavar="N", help="autoscale on requests a minute a replica"
    )
    duty_cycle_target: int | None = option(
        None, type=at_least(1, 100), metavar="PERCENT", help="autoscale on accelerator use"
    )
    accelerator_type: str | None = option(None, metavar="TYPE", help="such as NVIDIA_TESLA_T4")
    accelerators: int = option(0, type=at_least(0), metavar="N", help="accelerators a replica")

    def __post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            raise OptionError(
                f"--max_replicas: expected --min_replicas {self.min_replicas} or more, "
                f"got {self.max_replicas}"
            )
        if bool(self.accelerator_type) != bool(self.accelerators):
            raise OptionError("--accelerator_type, --accelerators: expected both or none")
        if self.duty_cycle_target is not None and not self.accelerator_type:
            raise OptionError("--duty_cycle_target: expected together with --accelerator_type")

    def changes(self, deployed: Any) -> list[Change]:
        """Lists the flags whose values differ from those of a deployed model.

        Autoscaling targets count where one is passed: without, Vertex AI fills in its own.
        """
        resources = deployed.dedicated_resources
        spec = resources.machine_spec
        targets = {m.metric_name.rsplit("/", 1)[1]: m.target for m in resources.autoscaling_metric_specs}
        # As in the API: a deployment without autoscaling has no maximum of its own.
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
        return [Change(*pair) for pair in pairs if pair[1] != pair[2]]

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


def parse_split(pairs: Iterable[str]) -> dict[str, int]:
    """Reads VERSION=PERCENT texts as shares of the traffic.

    >>> parse_split(["20260101.120000=90", "20260202.080000=10"])
    {'20260101.120000': 90, '20260202.080000': 10}

    Raises:
      OptionError: a text has another form, a version comes twice, or the shares do not add up to 100.
    """
    split: dict[str, int] = {}
    for pair in pairs:
        version, _, share = pair.rpartition("=")
        if not version or not (share.isascii() and share.isdigit()):
            raise OptionError(f"--split: expected VERSION=PERCENT, got {pair!r}")
        if version in split:
            raise OptionError(f"--split: expected each version once, got {version} twice")
        split[version] = int(share)
    if sum(split.values()) != 100:
        raise OptionError(f"--split: expected shares of 100 in all, got {sum(split.values())}")
    return split


def find(aiplatform: Any, name: str) -> Any:
    """Finds the endpoint of this display name, public or private; None when there is none.

    Raises:
      VertexError: there are several.
    """
    condition = f'display_name="{name}"'
    matches = [
        *aiplatform.Endpoint.list(filter=condition),
        *aiplatform.PrivateEndpoint.list(filter=condition),
    ]
    if len(matches) > 1:
        raise VertexError(
            f"{len(matches)} endpoints are called {name}: {', '.join(e.resource_name for e in matches)}"
        )
    return matches[0] if matches else None


def require(aiplatform: Any, name: str) -> Any:
    """Finds the endpoint of this display name.

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


def ensure(aiplatform: Any, options: EndpointOptions, traffic: int | None, actions: Actions) -> Any:
    """Finds the endpoint, or makes it; None when a dry run only shows that.

    Raises:
      VertexError: one of this name has another kind, or `traffic`, the share of the model to be deployed, is
        not possible on an empty endpoint.
    """
    endpoint = find(aiplatform, options.endpoint)
    _check_traffic(deployed_models(endpoint), traffic)
    if endpoint is not None:
        if not options.any_kind and kind_of(endpoint) != options.kind:
            raise VertexError(
                f"--endpoint {options.endpoint} exists as a {kind_of(endpoint)} endpoint, not "
                f"{options.kind}; pass another name, or delete it"
            )
        return endpoint
    labels = {**parse_labels(options.label), **dict([MANAGED_LABEL])}
    if options.kind in (SHARED, DEDICATED):
        return actions.do(
            "aiplatform.Endpoint.create",
            aiplatform.Endpoint.create,
            display_name=options.endpoint,
            labels=labels,
            dedicated_endpoint_enabled=options.dedicated or None,
        )
    config = None
    if options.psc_project:
        config = aiplatform.PrivateEndpoint.PrivateServiceConnectConfig(
            project_allowlist=list(options.psc_project)
        )._gapic_private_service_connect_config
    return actions.do(
        "aiplatform.PrivateEndpoint.create",
        aiplatform.PrivateEndpoint.create,
        display_name=options.endpoint,
        labels=labels,
        network=options.network,
        private_service_connect_config=config,
    )


def deploy(
    endpoint: Any,
    model: Any,
    model_version: str,
    machines: MachineOptions,
    traffic: int | None,
    service_account: str | None,
    actions: Actions,
) -> bool:
    """Deploys a version, unless it is deployed; False when it was deployed before.

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
            changes.append(Change("--service_account", service_account, known.service_account or "not set"))
        if changes:
            raise VertexError(
                f"{model_version} is deployed with {'; '.join(map(str, changes))}. A deployed version is not "
                "changed: pass the same flags, or undeploy it first"
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
    """Lists the deployed models of an endpoint by display name, the model's version; empty for None."""
    if endpoint is None:
        return {}
    return {deployed.display_name: deployed for deployed in endpoint.list_models()}


def set_traffic(endpoint: Any, split: dict[str, int], actions: Actions) -> bool:
    """Splits the traffic between versions, as read by `parse_split`; False when it is split so already.

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


def describe(endpoint: Any) -> list[dict[str, Any]]:
    """Makes a row for each deployed model of an endpoint, or one row where there is none."""
    row = {"endpoint": endpoint.display_name, "kind": kind_of(endpoint), "resource": endpoint.resource_name}
    split = dict(endpoint.traffic_split)
    rows = []
    for version, deployed in deployed_models(endpoint).items():
        resources = deployed.dedicated_resources
        spec = resources.machine_spec
        accelerator = spec.accelerator_type.name if spec.accelerator_count else None
        price = prices.hourly_price(spec.machine_type, accelerator, spec.accelerator_count)
        rows.append(
            {
                **row,
                "version": version,
                "deployed_id": deployed.id,
                "traffic": split.get(deployed.id, 0),
                "machine_type": spec.machine_type,
                "min_replicas": resources.min_replica_count,
                "max_replicas": resources.max_replica_count,
                "dollars_an_hour": None if price is None else round(price * resources.min_replica_count, 4),
            }
        )
    empty = ("version", "deployed_id", "traffic", "machine_type", "min_replicas", "max_replicas")
    return rows or [{**row, **dict.fromkeys(empty), "dollars_an_hour": 0.0}]


def delete(endpoint: Any, actions: Actions) -> None:
    """Undeploys everything and deletes the endpoint."""
    if deployed_models(endpoint):
        actions.do("Endpoint.undeploy_all", endpoint.undeploy_all)
    actions.do(f"{endpoint.resource_name}: delete", lambda: endpoint.delete())


def _check_traffic(deployed: dict[str, Any], traffic: int | None) -> None:
    if not deployed and traffic not in (None, 100):
        raise VertexError(f"--traffic {traffic}: the first model of an endpoint takes all of its traffic")


def _never(**_: Any) -> None:
    raise AssertionError("only a dry run has no endpoint")
