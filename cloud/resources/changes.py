"""Compares, creates and deletes the declared resources, with as few requests to Google as possible."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

from cloud.resources.accounts import Apis, Role
from cloud.resources.base import (
    MISSING,
    Clients,
    Key,
    Resource,
    ResourceError,
    State,
    StaysError,
    explained,
)
from cloud.resources.gcloud import GcloudError
from cloud.resources.propagation import is_settling, retry_while_settling

_THREADS: Final = 4

Action = Literal[
    "",
    "created",
    "repaired",
    "deleted",
    "deleted with its thing",
    "kept",
    "not deleted",
    "printed",
    "would create",
    "would repair",
    "would delete",
]


@dataclass(frozen=True)
class Change:
    """The outcome for one resource.

    Attributes:
      resource: that was compared.
      state: before the change.
      action: what was done; "" for nothing. "kept" is a resource that somebody else made; "not deleted" one
        that could not be removed.
      reason: why it was not deleted.
    """

    resource: Resource
    state: State
    action: Action = ""
    reason: str = ""


def inspect(resource: Resource, clients: Clients) -> State:
    """Compares a resource with its declaration; "unknown" with the error where it cannot be read."""
    try:
        with explained(resource):
            return resource.inspect(clients)
    except (ResourceError, GcloudError) as error:
        return State("unknown", error=error)


def inspect_all(resources: Sequence[Resource], clients: Clients) -> list[State]:
    """Compares all resources, a few at a time: each request waits for Google, gcloud's a second or more.

    A resource that needs a missing one is missing too, without a request.
    """
    states: dict[Key, State] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for dependent in (False, True):
            some = [resource for resource in resources if bool(resource.needs) is dependent]
            asked = [r for r in some if not any(states.get(key) == MISSING for key in r.needs)]
            answers = pool.map(lambda resource: inspect(resource, clients), asked)
            states |= {resource.key: MISSING for resource in some}
            states |= {resource.key: state for resource, state in zip(asked, answers, strict=True)}
    return [states[resource.key] for resource in resources]


def create(resources: Sequence[Resource], clients: Clients, dry_run: bool) -> list[Change]:
    """Creates the missing resources and repairs those that differ.

    A subscription that cannot be repaired comes last.

    Raises:
      ResourceError: a resource could not be made; those before it stay.
      GcloudError: a gcloud command failed.
    """
    # Where the APIs are off, no other request succeeds.
    apis = [resource for resource in resources if isinstance(resource, Apis)]
    if apis:
        rest = [resource for resource in resources if resource not in apis]
        first = [_create(resource, inspect(resource, clients), clients, dry_run) for resource in apis]
        return [*first, *create(rest, clients, dry_run)]
    states = list(zip(resources, inspect_all(resources, clients), strict=True))
    fixed = [
        (resource, state)
        for resource, state in states
        if resource.is_last and not all(difference.fixable for difference in state.differences)
    ]
    states = [each for each in states if each not in fixed]
    done = [
        _create(resource, state, clients, dry_run)
        for resource, state in states
        if not isinstance(resource, Role) or resource.target == "key"
    ]
    # Other roles come last. Those on one thing are granted one by one, because each rewrites its policy.
    things: dict[tuple[str, str], list[tuple[Role, State]]] = {}
    for resource, state in states:
        if isinstance(resource, Role) and resource.target != "key":
            things.setdefault((resource.target, resource.target_name), []).append((resource, state))

    def grant(roles: list[tuple[Role, State]]) -> list[Change]:
        return [_create(role, state, clients, dry_run) for role, state in roles]

    # Printing alone is fast, and keeps the order of the declaration.
    with ThreadPoolExecutor(1 if clients.gcloud.print_only else _THREADS) as pool:
        done += [change for granted in pool.map(grant, things.values()) for change in granted]
    return done + [_create(resource, state, clients, dry_run) for resource, state in fixed]


def _create(resource: Resource, state: State, clients: Clients, dry_run: bool) -> Change:
    printed = resource.by_gcloud and clients.gcloud.print_only
    if state.status == "unknown" and not dry_run and is_settling(state.error):
        state = retry_while_settling(lambda: _inspect_again(resource, clients), resource.title)
    if state.error and not printed and not dry_run:
        raise state.error
    missing = state.status == "missing" or (state.status == "unknown" and printed)
    if not missing and state.status != "drift":
        return Change(resource, state)
    if dry_run and not printed:
        return Change(resource, state, "would create" if missing else "would repair")

    def change() -> None:
        with explained(resource):
            if missing:
                resource.create(clients)
            else:
                resource.repair(clients, state)

    retry_while_settling(change, f"{resource.kind} {resource.title}")
    return Change(resource, state, "printed" if printed else "created" if missing else "repaired")


def _inspect_again(resource: Resource, clients: Clients) -> State:
    state = inspect(resource, clients)
    if state.error:
        raise state.error
    return state


def delete(resources: Sequence[Resource], clients: Clients, dry_run: bool) -> list[Change]:
    """Removes the resources that this project made, last first. Others stay, as the changes tell.

    Raises:
      ResourceError: a resource could not be removed.
      GcloudError: a gcloud command failed.
    """
    return [
        _delete(planned, clients, dry_run) if planned.action == "would delete" else planned
        for planned in reversed(_plan_deletion(resources, clients))
    ]


def _delete(planned: Change, clients: Clients, dry_run: bool) -> Change:
    resource, state = planned.resource, planned.state
    printed = resource.by_gcloud and clients.gcloud.print_only
    if dry_run and not printed:
        return planned
    try:
        with explained(resource):
            resource.delete(clients)
    except StaysError as error:
        return Change(resource, state, "not deleted", str(error))
    return Change(resource, state, "printed" if printed else "deleted")


def _plan_deletion(resources: Sequence[Resource], clients: Clients) -> list[Change]:
    """Decides for each resource whether it is to be deleted, and looks up no more than that needs."""
    things = [resource for resource in resources if resource.part_of is None]
    states = {r.key: state for r, state in zip(things, inspect_all(things, clients), strict=True)}
    plan: dict[Key, Change] = {}
    for thing in things:
        with explained(thing):
            missing = states[thing.key] == MISSING
            action: Action = "" if missing else "would delete" if thing.owned(clients) else "kept"
        plan[thing.key] = Change(thing, states[thing.key], action)
    # A policy is deleted with its thing. Where the thing stays, its roles are revoked one by one.
    for part in resources:
        if part.part_of is None:
            continue
        thing_plan = plan.get(part.part_of)
        if thing_plan and thing_plan.action == "would delete":
            plan[part.key] = Change(part, thing_plan.state, "deleted with its thing")
            continue
        missing = thing_plan is not None and thing_plan.state == MISSING
        state = MISSING if missing else inspect(part, clients)
        plan[part.key] = Change(part, state, "" if state == MISSING else "would delete")
    return [plan[resource.key] for resource in resources]
