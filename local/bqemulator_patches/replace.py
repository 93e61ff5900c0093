"""Replaces parts of another package by ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.params import Depends
from fastapi.routing import APIRoute


def replace(owner: Any, name: str, value: Any) -> None:
    """Sets `owner.name`, which must exist: a patch of something that is gone would fix nothing.

    Raises:
      AttributeError: `owner` has no such attribute. Another version of bqemulator is installed.
    """
    getattr(owner, name)
    setattr(owner, name, value)


def replace_route(
    router: APIRouter,
    name: str,
    function: Callable[..., Any] | None = None,
    dependencies: Sequence[Depends] = (),
) -> None:
    """Put another route in the place of the one whose handler is called `name`.

    Args:
      function: The handler; None keeps it.
      dependencies: They run before the handler, after those that the route has.
    """
    (route,) = (route for route in router.routes if isinstance(route, APIRoute) and route.name == name)
    router.routes.remove(route)
    router.add_api_route(
        route.path.removeprefix(router.prefix),
        function or route.endpoint,
        methods=list(route.methods or ()),
        status_code=route.status_code,
        name=name,
        dependencies=[*route.dependencies, *dependencies],
    )
