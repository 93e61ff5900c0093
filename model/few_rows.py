"""Scores few rows by numpy, operator by operator as the graph of the model has them.

For few rows an operator costs its call. In a process that does other things between two batches, one of torch
takes three times as long as one of numpy, and what it evicts from the caches makes the rest slower as well.
The graph stays the only home of the arithmetic: an operator that is not known here leaves all to torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

FEW: Final = 128
"""Rows up to which numpy is the faster."""

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
_ZERO: Final = np.zeros((), np.float32)


class _Operator(NamedTuple):
    """An operator of numpy, and the values that further arguments of TorchScript must have."""

    function: Callable[..., Any]
    arguments: int
    rest: tuple[Any, ...] = ()


class _Step(NamedTuple):
    """One operator of a graph, or a branch.

    Attributes:
      function: of numpy.
      take: takes its arguments out of all values.
      place: of its result there.
      branch: the steps that are taken where the only argument is true.
    """

    function: Callable[..., Any]
    take: Callable[[Sequence[Any]], Sequence[Any]]
    place: int
    branch: Sequence[_Step] | None = None


def _along(axis: int, part: Any) -> tuple[Any, ...]:
    """The index of a part along an axis."""
    return (*[slice(None)] * axis, part)


def _addcmul(first: Array, one: Array, other: Array) -> Array:
    product: Array = one * other
    product += first
    return product


def _addmm(bias: Array, rows: Array, weights: Array, beta: float, alpha: float) -> Array:
    product: Array = rows.dot(weights)
    if alpha != 1:
        product *= alpha
    product += bias if beta == 1 else beta * bias
    return product


def _clamp(rows: Array, low: Array, high: Array) -> Array:
    return np.minimum(np.maximum(rows, low), high)


def _index_copy(target: Array, axis: int, index: Array, source: Array) -> Array:
    target[_along(axis, index)] = source
    return target


_OPERATORS: Final[Mapping[str, _Operator]] = {
    "aten::Bool": _Operator(bool, 1),
    "aten::abs": _Operator(np.absolute, 1),
    "aten::add": _Operator(np.add, 2, (1,)),
    "aten::addcmul": _Operator(_addcmul, 3, (1,)),
    "aten::addmm": _Operator(_addmm, 5),
    "aten::any": _Operator(np.count_nonzero, 1),
    "aten::argmin": _Operator(lambda rows, axis: rows.argmin(axis), 2, (False,)),
    "aten::clamp": _Operator(_clamp, 3),
    "aten::clamp_min": _Operator(np.maximum, 2),
    "aten::div": _Operator(np.divide, 2),
    "aten::gt": _Operator(np.greater, 2),
    "aten::index_copy_": _Operator(_index_copy, 4),
    "aten::index_select": _Operator(lambda rows, axis, index: rows.take(index, axis), 3),
    "aten::log1p": _Operator(np.log1p, 1),
    "aten::matmul": _Operator(np.dot, 2),
    "aten::minimum": _Operator(np.minimum, 2),
    "aten::mul": _Operator(np.multiply, 2),
    "aten::narrow": _Operator(lambda rows, axis, start, n: rows[_along(axis, slice(start, start + n))], 4),
    "aten::nonzero": _Operator(lambda rows: np.array(rows.nonzero()).T, 1),
    "aten::relu": _Operator(lambda rows: np.maximum(rows, _ZERO), 1),
    "aten::select": _Operator(lambda rows, axis, i: rows[_along(axis, i)], 3),
    "aten::slice": _Operator(lambda rows, axis, *bounds: rows[_along(axis, slice(*bounds))], 5),
    "aten::square": _Operator(np.square, 1),
    "aten::sub": _Operator(np.subtract, 2, (1,)),
    "aten::sum": _Operator(np.add.reduce, 2, (False, None)),
    "aten::unsqueeze": _Operator(lambda rows, axis: rows[_along(axis, None)], 2),
}


class FewRows:
    """The graph of `score` of a frozen module as calls of numpy.

    Threads may share it. The results equal those of torch but for the rounding of float32.

    Args:
      module: from `model.torchscript.frozen`.

    Raises:
      UnknownGraphError: the graph has something that is not known here.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._values: list[Any] = []
        self._places: dict[str, int] = {}
        graph = module.score.graph
        _, rows = graph.inputs()
        self._rows = self._place(rows)
        self._steps = self._read(graph.nodes())
        (answer,) = graph.outputs()
        self._outputs = self._taken(answer.node())

    def score(self, rows: Floats) -> tuple[Floats, ...]:
        """Computes the outputs of `score`."""
        values = self._values.copy()
        values[self._rows] = rows
        with np.errstate(over="ignore", invalid="ignore"):
            _run(self._steps, values)
        return tuple([values[place] for place in self._outputs])

    def _read(self, nodes: Iterable[Any]) -> list[_Step]:
        steps = []
        for node in nodes:
            kind = node.kind()
            if kind == "prim::Constant":
                self._place(node.output(), _constant(node.output()))
            elif kind == "prim::If":
                chosen, other = node.blocks()
                if node.outputsSize() or list(other.nodes()):
                    raise UnknownGraphError("a branch that has an output, or an alternative")
                steps.append(_Step(bool, _taker(self._taken(node)), -1, self._read(chosen.nodes())))
            elif kind in _OPERATORS:
                function, n, rest = _OPERATORS[kind]
                taken = self._taken(node)
                if tuple(self._values[place] for place in taken[n:]) != rest:
                    raise UnknownGraphError(f"{kind} with other arguments than expected")
                steps.append(_Step(function, _taker(taken[:n]), self._place(node.output())))
            elif kind != "prim::TupleConstruct":  # of the outputs
                raise UnknownGraphError(f"operator {kind}")
        return steps

    def _taken(self, node: Any) -> list[int]:
        return [self._places[value.debugName()] for value in node.inputs()]

    def _place(self, value: Any, content: Any = None) -> int:
        self._places[value.debugName()] = len(self._values)
        self._values.append(content)
        return len(self._values) - 1


class UnknownGraphError(ValueError):
    """A graph has something that `FewRows` does not know."""


def few_rows(module: torch.jit.ScriptModule) -> FewRows | None:
    """Makes the FewRows of a frozen module; None where its graph has something that is not known here."""
    try:
        return FewRows(module)
    except UnknownGraphError:
        return None


def _run(steps: Sequence[_Step], values: list[Any]) -> None:
    for function, take, place, branch in steps:
        if branch is None:
            values[place] = function(*take(values))
        elif any(take(values)):
            _run(branch, values)


def _constant(value: Any) -> Any:
    """A constant as numpy takes it. A Python number would be converted at each call."""
    content = value.toIValue()
    if isinstance(content, torch.Tensor):
        if content.dtype != torch.float32:
            raise UnknownGraphError(f"a constant of {content.dtype}")
        return content.numpy()
    if isinstance(content, float):
        return np.array(content, np.float32)
    return tuple(content) if isinstance(content, list) else content


def _taker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Returns the function that takes these places of a list, always as a sequence."""
    if len(places) == 1:
        return operator.itemgetter(slice(places[0], places[0] + 1))
    return operator.itemgetter(*places)
