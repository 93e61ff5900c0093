"""TorchScript in one place: trace, save, load, freeze.

torch 2.13 warns that `torch.jit` is deprecated. The format stays, because the prebuilt serving containers
run an older torch that reads a `.pt` of a newer one and not its `.pt2`. The warnings are silenced here and
nowhere else, so that another format changes this module alone.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import BinaryIO, Final

import torch

from common.writing import writing
from model.network import TransactionAutoencoder

METHODS = ("forward", "score")

OPERATORS: Final = frozenset(
    f"aten::{name}"
    for name in [
        "__getitem__",
        "Bool",
        "abs",
        "add",
        "add_",
        "addcmul",
        "addcmul_",
        "addmm",
        "addmm_",
        "amax",
        "any",
        "argmin",
        "clamp",
        "clamp_max",
        "clamp_min",
        "clone",
        "contiguous",
        "copy_",
        "div",
        "div_",
        "exp",
        "gt",
        "index_copy_",
        "index_select",
        "linear",
        "log",
        "log1p",
        "matmul",
        "minimum",
        "mm",
        "mul",
        "mul_",
        "narrow",
        "neg",
        "nonzero",
        "numpy_T",
        "relu",
        "relu_",
        "select",
        "size",
        "slice",
        "sqrt",
        "square",
        "square_",
        "sub",
        "sub_",
        "sum",
        "t",
        "unflatten",
        "unsqueeze",
        "where",
    ]
) | {"prim::TupleUnpack"}
"""The operators of the network, and of its earlier versions. TorchScript has others that read files, such as
aten::from_file."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*is deprecated", category=DeprecationWarning)
        yield


def trace(network: TransactionAutoencoder) -> torch.jit.ScriptModule:
    """Traces `forward` and `score` of the network into one module that takes any number of rows.

    The network is traced as it stands, in eval mode and on the CPU. `torch.jit.load(path)(x)` of the saved
    module calls `forward`, as TorchServe and the prebuilt containers do.
    """
    network = network.eval().cpu()
    # Three different rows: a batch of one, or of equal rows, could hide a shape baked into the graph.
    n = len(network.mean)
    example = torch.linspace(-2.0, 2.0, 3 * n).reshape(3, n)
    with _quiet(), torch.no_grad():
        # strict=False lets forward return a dict, as the serving contract asks.
        return torch.jit.trace_module(network, dict.fromkeys(METHODS, example), strict=False)


def save(module: torch.jit.ScriptModule, path: str | os.PathLike[str]) -> None:
    """Writes a traced module to `path`.

    Raises:
      FileWriteError: the file cannot be written.
    """
    # A file of Python's: of a full disk torch's own writer says RuntimeError, without a cause.
    with _quiet(), writing(os.fspath(path)), open(path, "wb") as file:
        torch.jit.save(module, file)


def load(
    source: str | os.PathLike[str] | BinaryIO, freeze: bool = True, device: str = "cpu"
) -> torch.jit.ScriptModule:
    """Loads a traced module in eval mode on `device`.

    Args:
      source: a local file that `save` wrote, or its content.
      freeze: inline the weights as constants, the fastest form for inference; `forward` and `score` are kept.
      device: a torch device name.
    """
    source = os.fspath(source) if isinstance(source, str | os.PathLike) else source
    with _quiet():
        module = torch.jit.load(source, map_location=device).eval()
    return frozen(module) if freeze else module


def foreign_operators(module: torch.jit.ScriptModule) -> list[str]:
    """Lists the operators of a loaded module, and of the modules inside it, that the network does not use."""
    with _quiet():
        names = torch.jit.export_opnames(module)
    return sorted({name.partition(".")[0] for name in names} - OPERATORS)


def frozen(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Inlines the weights of a loaded module as constants; `forward` and `score` are kept."""
    with _quiet():
        return torch.jit.freeze(module, preserved_attrs=["score"])
