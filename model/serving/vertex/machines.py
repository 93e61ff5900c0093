"""The machines of a deployed model: their options, what may change in place, and the change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from common.options import OptionError, option
from common.values import at_least
from model.serving.vertex.session import Actions, VertexError

_METRICS: Final = "aiplatform.googleapis.com/prediction/online/"
_TARGETS: Final = {
    "--cpu_target": "cpu/utilization",
    "--request_target": "request_count",
    "--duty_cycle_target": "accelerator/duty_cycle",
}
_IN_PLACE: Final = {
    "--min_replicas": "min_replica_count",
    "--max_replicas": "max_replica_count",
    **dict.fromkeys(_TARGETS, "autoscaling_metric_specs"),
}
"""The fields of a deployed model that Vertex AI changes while it serves, by flag."""


class Change(NamedTuple):
    """A flag whose value differs from that of a deployed model."""

    flag: str
    expected: Any
    actual: Any

    def __str__(self) -> str:
        return f"{self.flag} {self.actual}, not {self.expected}"

    @property
    def in_place(self) -> bool:
        """True where Vertex AI changes it while the model serves: replicas, but not from or to zero."""
        zero = self.flag == "--min_replicas" and not (self.expected and self.actual)
        return self.flag in _IN_PLACE and not zero


@dataclass(frozen=True)
class MachineOptions:
    """The machines of a deployed model, and the targets of their autoscaling."""

    machine_type: str = option("n1-standard-2", help="default: %(default)s")
    min_replicas: int | None = option(
        None,
        type=at_least(0),
        metavar="N",
        help="0 for none while there are no requests (Preview of Google; the first requests are refused for "
        "minutes) (default: 1, or as deployed)",
    )
    max_replicas: int | None = option(
        None,
        type=at_least(1),
        metavar="N",
        help="default: the larger of --min_replicas and 1, or as deployed",
    )
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
        if None not in (self.min_replicas, self.max_replicas) and self.least > self.most:
            raise OptionError(
                f"--max_replicas: expected --min_replicas {self.least} or more, got {self.most}"
            )
        if bool(self.accelerator_type) != bool(self.accelerators):
            raise OptionError("--accelerator_type, --accelerators: expected both or none")
        if self.duty_cycle_target is not None and not self.accelerator_type:
            raise OptionError("--duty_cycle_target: expected together with --accelerator_type")

    @property
    def least(self) -> int:
        """Replicas of a new deployment at least."""
        return 1 if self.min_replicas is None else self.min_replicas

    @property
    def most(self) -> int:
        """Replicas of a new deployment at most."""
        return self.max_replicas or max(1, self.least)

    @property
    def scales_to_zero(self) -> bool:
        """True where no replica is to run while there are no requests."""
        return self.least == 0

    @property
    def targets(self) -> dict[str, int]:
        """The targets of autoscaling that are passed, by metric."""
        values = (self.cpu_target, self.request_target, self.duty_cycle_target)
        return {
            _METRICS + metric: value
            for metric, value in zip(_TARGETS.values(), values, strict=True)
            if value is not None
        }

    def changes(self, deployed: Any) -> list[Change]:
        """Lists the flags whose values differ from those of a deployed model.

        Replicas and autoscaling targets count where they are passed.
        """
        resources = deployed.dedicated_resources
        spec = resources.machine_spec
        accelerator = spec.accelerator_type.name if spec.accelerator_count else None
        pairs: list[tuple[str, Any, Any]] = [
            ("--machine_type", self.machine_type, spec.machine_type),
            ("--accelerator_type", self.accelerator_type, accelerator),
            ("--accelerators", self.accelerators, spec.accelerator_count),
        ]
        # As in the API: a deployment without autoscaling has no maximum of its own.
        most = resources.max_replica_count or resources.min_replica_count
        if self.min_replicas is not None:
            pairs.append(("--min_replicas", self.min_replicas, resources.min_replica_count))
        if self.max_replicas is not None:
            pairs.append(("--max_replicas", self.max_replicas, most))
        targets = {spec.metric_name: spec.target for spec in resources.autoscaling_metric_specs}
        for flag, metric in _TARGETS.items():
            wanted = self.targets.get(_METRICS + metric)
            if wanted is not None:
                pairs.append((flag, wanted, targets.get(_METRICS + metric)))
        return [Change(*pair) for pair in pairs if pair[1] != pair[2]]

    def deployer(self, endpoint: Any) -> Callable[..., Any]:
        """The SDK's `deploy` of an endpoint: scaling to zero is in its preview alone."""
        if not self.scales_to_zero:
            return endpoint.deploy  # type: ignore[no-any-return]
        # Deferred: seconds of imports.
        from google.cloud.aiplatform.preview import models

        return models.Endpoint(endpoint.resource_name).deploy  # type: ignore[no-any-return]

    def arguments(self) -> dict[str, Any]:
        """As arguments of the SDK's `deploy`."""
        return {
            "machine_type": self.machine_type,
            "min_replica_count": self.least,
            "max_replica_count": self.most,
            "initial_replica_count": 1 if self.scales_to_zero else None,
            "autoscaling_target_cpu_utilization": self.cpu_target,
            "autoscaling_target_request_count_per_minute": self.request_target,
            "autoscaling_target_accelerator_duty_cycle": self.duty_cycle_target,
            "accelerator_type": self.accelerator_type,
            "accelerator_count": self.accelerators or None,
        }


def change_in_place(
    endpoint: Any, deployed: Any, machines: MachineOptions, changes: Sequence[Change], actions: Actions
) -> None:
    """Changes replicas and autoscaling targets of a deployed model, which serves meanwhile.

    Raises:
      VertexError: the replicas at least would be more than those at most.
    """
    from google.cloud.aiplatform_v1.types import DeployedModel

    flags = {change.flag: change for change in changes}
    resources = deployed.dedicated_resources
    least = machines.min_replicas if "--min_replicas" in flags else resources.min_replica_count
    most = machines.max_replicas if "--max_replicas" in flags else resources.max_replica_count or least
    if least > most:
        raise VertexError(
            f"--min_replicas, --max_replicas: expected the first not above the second, got {least} and {most}"
        )
    targets = {spec.metric_name: spec.target for spec in resources.autoscaling_metric_specs}
    specs = [{"metric_name": name, "target": target} for name, target in (targets | machines.targets).items()]
    new = {"min_replica_count": least, "max_replica_count": most, "autoscaling_metric_specs": specs}
    fields = sorted({_IN_PLACE[flag] for flag in flags})
    wanted = DeployedModel(id=deployed.id, dedicated_resources={field: new[field] for field in fields})

    def mutate(endpoint: str, deployed_model: Any, update_mask: Any) -> Any:
        operation = client.mutate_deployed_model(
            endpoint=endpoint, deployed_model=deployed_model, update_mask=update_mask
        )
        return operation.result()

    client = endpoint.api_client
    actions.do(
        "EndpointService.mutate_deployed_model",
        mutate,
        endpoint=endpoint.resource_name,
        deployed_model=wanted,
        update_mask={"paths": [f"dedicated_resources.{field}" for field in fields]},
    )
