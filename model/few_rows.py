"""Scores few rows by numpy, operator by operator as the graph of the model has them.

For few rows an operator costs its call. In a process that does other things between two batches, one of torch
takes three times as long as one of numpy, and what it evicts from the caches makes the rest slower as well.
The graph stays the only home of the arithmetic: an operator that is not known here, or has other
arguments, leaves all to torch. So does a batch with a row above the gate, which the graph compares with the
training's highest.
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
    """One operator of a graph.

    Attributes:
      function: of numpy.
      take: takes its arguments out of all values.
      place: of its result there.
    """

    function: Callable[..., Any]
    take: Callable[[Sequence[Any]], Sequence[Any]]
    place: int


def _along(axis: int, part: Any) -> tuple[Any, ...]:
    """The index of a part along an axis; a negative one counts from the end."""
    return (..., part, *[slice(None)] * (-1 - axis)) if axis < 0 else (*[slice(None)] * axis, part)


def _addcmul(first: Array, one: Array, other: Array, value: float, out: Array | None = None) -> Array:
    product = one * other
    if value != 1:
        product *= value
    return np.add(first, product, out=out)


def _addmm(
    bias: Array, rows: Array, weights: Array, beta: float, alpha: float, out: Array | None = None
) -> Array:
    product = rows.dot(weights)
    if alpha != 1:
        product *= alpha
    return np.add(product, bias if beta == 1 else beta * bias, out=product if out is None else out)


def _copy(rows: Array, other: Array) -> Array:
    rows[...] = other
    return rows


def _narrow(rows: Array, axis: int, start: int, n: int) -> Array:
    if start < 0:  # it counts from the end
        start += rows.shape[axis]
    part: Array = rows[_along(axis, slice(start, start + n))]
    return part


def _clamp(rows: Array, low: Array, high: Array) -> Array:
    return np.minimum(np.maximum(rows, low), high)


def _relu(rows: Array, out: Array | None = None) -> Array:
    return np.maximum(rows, _ZERO, out=out)


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """The form of an operator that writes its result into its first argument."""
    return lambda rows, *others: function(rows, *others, out=rows)


_PLAIN: Final[Mapping[str, _Operator]] = {
    "aten::Bool": _Operator(bool, 1),
    "aten::abs": _Operator(np.absolute, 1),
    "aten::add": _Operator(np.add, 2, (1,)),
    "aten::addcmul": _Operator(_addcmul, 4),
    "aten::addmm": _Operator(_addmm, 5),
    "aten::any": _Operator(np.count_nonzero, 1),
    "aten::clamp": _Operator(_clamp, 3),
    "aten::clamp_max": _Operator(np.minimum, 2),
    "aten::clamp_min": _Operator(np.maximum, 2),
    "aten::clone": _Operator(np.array, 1, (None,)),
    "aten::contiguous": _Operator(np.ascontiguousarray, 1, (0,)),
    "aten::div": _Operator(np.divide, 2),
    "aten::gt": _Operator(np.greater, 2),
    "aten::log1p": _Operator(np.log1p, 1),
    "aten::matmul": _Operator(np.matmul, 2),
    "aten::mm": _Operator(np.dot, 2),
    "aten::mul": _Operator(np.multiply, 2),
    "aten::narrow": _Operator(_narrow, 4),
    "aten::relu": _Operator(_relu, 1),
    "aten::select": _Operator(lambda rows, axis, i: rows[_along(axis, i)], 3),
    "aten::slice": _Operator(lambda rows, axis, *bounds: rows[_along(axis, slice(*bounds))], 5),
    "aten::square": _Operator(np.square, 1),
    "aten::sub": _Operator(np.subtract, 2, (1,)),
    "aten::sum": _Operator(lambda rows, axis, keep: np.add.reduce(rows, axis, keepdims=keep), 3, (None,)),
    "aten::t": _Operator(np.transpose, 1),
    "aten::unsqueeze": _Operator(lambda rows, axis: rows[_along(axis, None)], 2),
}
_OPERATORS: Final = {
    **_PLAIN,
    **{
        f"{name}_": _PLAIN[name]._replace(function=_in_place(_PLAIN[name].function))
        for name in (
            "aten::add",
            "aten::addcmul",
            "aten::addmm",
            "aten::div",
            "aten::mul",
            "aten::relu",
            "aten::square",
            "aten::sub",
        )
    },
    "aten::copy_": _Operator(_copy, 2, (False,)),
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
        self._nones: set[int] = set()
        graph = module.score.graph
        _, rows = graph.inputs()
        self._rows = self._place(rows)
        self._is_high: int | None = None
        self._steps = self._read(graph.nodes())
        (answer,) = graph.outputs()
        if answer.node().kind() != "prim::TupleConstruct":
            raise UnknownGraphError("an answer that is no tuple of outputs, or a constant")
        self._outputs = self._taken(answer.node())

    def score(self, rows: Floats) -> tuple[Floats, ...] | None:
        """Computes the outputs of `score`; None where a row is above the gate, so that torch has to."""
        values = self._values.copy()
        values[self._rows] = rows
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for function, take, place in self._steps:
                values[place] = function(*take(values))
        if self._is_high is not None and values[self._is_high]:
            return None
        return tuple([values[place] for place in self._outputs])

    def _read(self, nodes: Iterable[Any]) -> list[_Step]:
        steps = []
        for node in nodes:
            kind = node.kind()
            if kind == "prim::Constant":
                place = self._place(node.output(), _constant(node.output()))
                if self._values[place] is None:
                    self._nones.add(place)
            elif kind == "prim::If":
                _, other = node.blocks()
                if node.outputsSize() or list(other.nodes()) or self._is_high is not None:
                    raise UnknownGraphError("a branch that has an output, an alternative or a second one")
                (self._is_high,) = self._taken(node)
            elif kind in _OPERATORS:
                function, n, rest = _OPERATORS[kind]
                taken = self._taken(node)
                if tuple(self._values[place] for place in taken[n:]) != rest:
                    raise UnknownGraphError(f"{kind} with other arguments than expected")
                if kind != "aten::slice" and self._nones.intersection(taken[:n]):
                    raise UnknownGraphError(f"{kind} without one of its arguments")
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
