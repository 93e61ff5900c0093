"""Endpoints of Vertex AI: create, deploy to, split traffic, describe, delete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from common.options import OptionError, option
from model.serving.vertex import prices
from model.serving.vertex.machines import Change, MachineOptions, change_in_place
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
) -> list[Change] | None:
    """Deploys a version; where it is deployed, changes its replicas in place.

    Args:
      endpoint: the SDK's, or None for one that a dry run did not make.
      model: the SDK's Model of the version, or None in a dry run.
      model_version: becomes the display name of the deployed model; remote scorers read it from there.
      machines: what it runs on.
      traffic: per cent of the endpoint's traffic; None for all on an empty endpoint and none on another.
      service_account: that the container runs as.
      actions: makes or shows the call.

    Returns:
      The changes of a version that was deployed before; None for one that was not.

    Raises:
      VertexError: `traffic` is under 100 on an empty endpoint, the replicas of a private endpoint are to
        scale to zero, or the version is deployed on other machines.
    """
    deployed = deployed_models(endpoint)
    if model_version in deployed:
        known = deployed[model_version]
        changes = machines.changes(known)
        if service_account and service_account != known.service_account:
            changes.append(Change("--service_account", service_account, known.service_account or "not set"))
        fixed = [change for change in changes if not change.in_place]
        if fixed:
            raise VertexError(
                f"{model_version} is deployed with {'; '.join(map(str, fixed))}. Of a deployed version, "
                "replicas alone are changed: pass the same flags, or undeploy it first"
            )
        if changes:
            change_in_place(endpoint, known, machines, changes, actions)
        return changes
    _check_traffic(deployed, traffic)
    kind = SHARED if endpoint is None else kind_of(endpoint)
    if kind == PEERED and deployed:
        raise VertexError(
            "a peered endpoint takes one model; undeploy the other first, or use another endpoint"
        )
    if machines.scales_to_zero and kind in (PEERED, PRIVATE_SERVICE_CONNECT):
        raise VertexError(
            f"--min_replicas 0: expected at least 1 on a {kind} endpoint, which never scales to 0"
        )
    actions.do(
        "Endpoint.deploy",
        machines.deployer(endpoint) if endpoint is not None else _never,
        model=model,
        deployed_model_display_name=model_version,
        traffic_percentage=None if kind == PEERED else traffic or (0 if deployed else 100),
        service_account=service_account,
        **machines.arguments(),
    )
    return None


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
