"""Compares, creates and deletes the declared resources, with as few questions to Google as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

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
from cloud.resources.patience import patiently, settling

_THREADS: Final = 4
_WITH_ITS_THING: Final = State("unknown", ("goes with what it is on",))

Done = tuple[Resource, State, str]
"""A resource, what was found, and what was done."""

STAYS: Final = "stays"
"""What `delete` says of a resource that it could not remove, with the reason among the details."""


def inspect(resource: Resource, clients: Clients) -> State:
    """The state of a resource; "unknown" with the reason where it cannot be read."""
    try:
        with explained(resource):
            return resource.inspect(clients)
    except (ResourceError, GcloudError) as error:
        return State("unknown", (str(error),))


def inspect_all(resources: Sequence[Resource], clients: Clients) -> list[State]:
    """The states of all, a few at a time: each question waits for Google, gcloud's a second or more.

    What needs something that is missing is missing too, and nobody is asked.
    """
    found: dict[Key, State] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for waiting in (False, True):
            some = [resource for resource in resources if bool(resource.needs) is waiting]
            asked = [r for r in some if not any(found.get(key) == MISSING for key in r.needs)]
            states = pool.map(lambda resource: inspect(resource, clients), asked)
            found |= {resource.key: MISSING for resource in some}
            found |= {resource.key: state for resource, state in zip(asked, states, strict=True)}
    return [found[resource.key] for resource in resources]


def create(resources: Sequence[Resource], clients: Clients, dry_run: bool) -> list[Done]:
    """Makes what is missing and repairs what differs.

    Returns:
      For each resource what was found, and what was done: "", "created", "repaired", "would create",
      "would repair", "printed" for gcloud commands that were not run.

    Raises:
      ResourceError: a resource could not be made; those before it stay.
      GcloudError: a gcloud command failed.
    """
    # Where the APIs are off, nothing else can be asked.
    apis = [resource for resource in resources if isinstance(resource, Apis)]
    if apis:
        rest = [resource for resource in resources if resource not in apis]
        first = [_create(resource, inspect(resource, clients), clients, dry_run) for resource in apis]
        return [*first, *create(rest, clients, dry_run)]
    found = list(zip(resources, inspect_all(resources, clients), strict=True))
    done = [
        _create(resource, _again(resource, state, clients, dry_run), clients, dry_run)
        for resource, state in found
        if not isinstance(resource, Role)
    ]
    # Roles come last. Those on one thing are given one after the other, because each rewrites its policy.
    things: dict[tuple[str, str], list[tuple[Role, State]]] = {}
    for resource, state in found:
        if isinstance(resource, Role):
            things.setdefault((resource.target, resource.target_name), []).append((resource, state))

    def give(roles: list[tuple[Role, State]]) -> list[Done]:
        return [
            _create(role, _again(role, state, clients, dry_run), clients, dry_run) for role, state in roles
        ]

    # What is printed alone costs nothing, and stands in the order of the declaration.
    with ThreadPoolExecutor(1 if clients.gcloud.print_only else _THREADS) as pool:
        return [*done, *(each for given in pool.map(give, things.values()) for each in given)]


def _again(resource: Resource, state: State, clients: Clients, dry_run: bool) -> State:
    """The state; looked up again and again where an API that was enabled just now is not there yet."""
    if dry_run or state.status != "unknown" or not settling(state.details[0]):
        return state
    found = [state]

    def look() -> None:
        found[0] = inspect(resource, clients)
        if found[0].status == "unknown":
            raise ResourceError(found[0].details[0])

    patiently(look, f"{resource.kind} {resource.title}")
    return found[0]


def _create(resource: Resource, state: State, clients: Clients, dry_run: bool) -> Done:
    verb = {"missing": "create", "drift": "repair"}.get(state.status, "")
    printed = resource.by_gcloud and clients.gcloud.print_only
    if state.status == "unknown" and (printed or not dry_run):
        if not printed:
            raise ResourceError(state.details[0])
        verb = "create"  # the administrator's gcloud will see, and most of its commands can be run again
    if not verb or (dry_run and not printed):
        return resource, state, f"would {verb}" if verb else ""

    def change() -> None:
        with explained(resource):
            if verb == "create":
                resource.create(clients)
            else:
                resource.repair(clients, state)

    patiently(change, f"{resource.kind} {resource.title}")
    return resource, state, "printed" if printed else f"{verb.rstrip('e')}ed"


def delete(resources: Sequence[Resource], clients: Clients, dry_run: bool) -> list[Done]:
    """Removes what this project made, last first. What lacks its mark, or holds more, is left and said.

    Raises:
      ResourceError: a resource could not be removed.
      GcloudError: a gcloud command failed.
    """
    done = []
    for resource, state, goes in reversed(_marked(resources, clients)):
        if state.status == "missing" or not goes:
            done.append((resource, state, "" if state.status == "missing" else "left alone"))
            continue
        if state is _WITH_ITS_THING:
            done.append((resource, state, "goes with it"))
            continue
        printed = resource.by_gcloud and clients.gcloud.print_only
        try:
            with explained(resource):
                if printed or not dry_run:
                    resource.delete(clients)
        except StaysError as error:
            done.append((resource, State(state.status, (str(error),)), STAYS))
            continue
        done.append((resource, state, "printed" if printed else "would delete" if dry_run else "deleted"))
    return done


def _marked(resources: Sequence[Resource], clients: Clients) -> list[tuple[Resource, State, bool]]:
    """Each resource with its state, and whether it goes."""
    things = [resource for resource in resources if resource.part_of is None]
    states = {r.key: state for r, state in zip(things, inspect_all(things, clients), strict=True)}
    goes: dict[Key, bool] = {}
    for thing in things:
        with explained(thing):
            goes[thing.key] = states[thing.key] != MISSING and thing.owned(clients)
    # The policy of a thing goes with the thing. Where that stays, its roles are taken away one by one.
    for part in resources:
        thing_key = part.part_of
        if thing_key is None:
            continue
        if goes.get(thing_key):
            states[part.key] = _WITH_ITS_THING
        else:
            states[part.key] = MISSING if states.get(thing_key) == MISSING else inspect(part, clients)
        goes[part.key] = True
    return [(resource, states[resource.key], goes[resource.key]) for resource in resources]
