"""Runs a loaded model: one way to choose between `forward`, `score` and numpy, and one warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model.few_rows import FEW, FewRows
from model.outputs import CONTRIBUTIONS, SCORE_FIELDS

EVEN_ROWS: Final = 64
"""A call of torch has a multiple of so many rows. The last of another number are added up in another order,
so that a transaction in another batch would have another last digit."""
CALL_ROWS: Final = 4096
"""Rows of one call of the model: what its layers pass on then stays in a core's cache."""
WARM_UP_ROWS: Final = (1, 1, 2, 128, 128)
"""Sizes of the first calls. A frozen module is compiled by them, anew for a single row."""

_CHEAP: Final = frozenset(SCORE_FIELDS)

Floats = npt.NDArray[np.float32]


def use_one_thread() -> None:
    """Keeps torch to the calling thread; call it in every thread that runs the model.

    Servers and runners start a process or thread a core, so more threads in each would only compete with
    them. OpenMP keeps the number by thread: a loader that sets it alone leaves the thread that serves with
    one for every core.
    """
    torch.set_num_threads(1)


def outputs(
    module: torch.jit.ScriptModule, features: Floats, fields: Sequence[str], few: FewRows | None = None
) -> dict[str, Floats]:
    """Computes outputs of the model, by the cheap `score` where that suffices.

    Args:
      module: from `Artifact.load_model`.
      features: raw inputs, float32 [n, k].
      fields: names out of `model.outputs.ANSWER_FIELDS`.
      few: computes `score` of few rows, from `model.few_rows.few_rows` of this module.

    Returns:
      The fields by name, in their order; arrays of n rows.
    """
    if few is not None and len(features) <= FEW and _CHEAP.issuperset(fields):
        cheap = few.score(features)
        if cheap is not None:
            by_name = dict(zip(SCORE_FIELDS, cheap, strict=True))
            return {name: by_name[name] for name in fields}
    # torch warns of an array that it cannot write to, such as a view of an Arrow buffer.
    rows = torch.from_numpy(features if features.flags.writeable else features.copy())
    if len(rows) <= CALL_ROWS:
        return _call(module, rows, fields)
    parts = [_call(module, part, fields) for part in rows.split(CALL_ROWS)]
    return {name: np.concatenate([part[name] for part in parts]) for name in fields}


def warm_up(module: torch.jit.ScriptModule, fields: Sequence[str], n_inputs: int) -> None:
    """Makes the calls that compile a frozen module for these fields, so that no request waits for them."""
    for n in WARM_UP_ROWS:
        outputs(module, np.zeros((n, n_inputs), np.float32), fields)


def _call(module: torch.jit.ScriptModule, rows: torch.Tensor, fields: Sequence[str]) -> dict[str, Floats]:
    named: dict[str, torch.Tensor] = {}
    n = len(rows)
    if over := -n % EVEN_ROWS:
        rows = torch.cat([rows, rows[-1:].expand(over, -1)])
    with torch.inference_mode():
        if not _CHEAP.issuperset(fields):
            named.update(module(rows))
        if not named or CONTRIBUTIONS in fields:
            named.update(zip(SCORE_FIELDS, module.score(rows), strict=True))
        return {name: named[name][:n].numpy() for name in fields}
