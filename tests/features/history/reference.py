"""The history in plain Python: one row at a time, dictionaries, no arrays. The tests hold `update` to it."""

from __future__ import annotations

import math
from typing import Any

from features.history import formulas
from features.history.plan import NOVELTY_HASHES, NOVELTY_WORDS, SKETCH_CELLS, SKETCH_ROWS, Plan, half_life

Row = tuple[int, int, dict[str, float | None], dict[str, int]]
"""Key, time, numbers by field, hashes of categories by field (0 for none)."""


class Reference:
    """Keeps the state of all keys as dictionaries."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._states: dict[int, dict[Any, Any]] = {}

    def values(self, row: Row, is_counted: bool = True) -> list[float]:
        """Returns the features of a row, and counts it."""
        key, time, numbers, categories = row
        if key == 0:
            return [formulas.OF_NEW_KEY[feature.statistic or ""] for feature in self._plan.features]
        state = self._states.get(key)
        if state is None or time - state["last"] > self._plan.horizon:
            state = {"last": None}
        now = time if state["last"] is None else max(time, state["last"])
        values = [self._value(feature, state, now, numbers, categories) for feature in self._plan.features]
        if is_counted:
            self._states[key] = self._after(state, now, time, numbers, categories)
        return values

    def _read(self, state: dict[Any, Any], name: Any, half: int, now: int) -> float:
        if name not in state:
            return 0.0
        return float(state[name] * 2.0 ** (-(now - state["last"]) / half))

    def _value(
        self, feature: Any, state: Any, now: int, numbers: dict[str, float | None], categories: dict[str, int]
    ) -> float:
        half, of, statistic = half_life(feature), feature.of or "", feature.statistic

        def read(*name: Any) -> float:
            return self._read(state, (*name, half), half, now)

        k = formulas.SHRINK
        if statistic == "since_last":
            most = formulas.OF_NEW_KEY["since_last"]
            return most if state["last"] is None else min((now - state["last"]) / 1e6, most)
        if statistic == "count":
            return read("count")
        if statistic == "sum":
            return read("sum", of)
        n = read("n", of)
        if statistic == "mean":
            return read("sum", of) / n if n else 0.0
        if statistic == "deviation":
            x = numbers[of]
            if x is None or not n:
                return 0.0
            level, spread = self._level(state, of, half, now)
            if spread == 0:
                ratio = formulas.MOST_DEVIATIONS * ((x > level) - (x < level))
            else:
                ratio = (x - level) / spread
                ratio = max(-formulas.MOST_DEVIATIONS, min(formulas.MOST_DEVIATIONS, ratio))
            return ratio * n / (n + k)
        value = categories[of]
        if statistic == "novelty":
            if value == 0:
                return 0.0
            generation = now // half
            seen = state.get(("set", of, half, generation), set())
            seen = seen | state.get(("set", of, half, generation - 1), set())
            total = read("count")
            return 0.0 if set(_bits(value)) <= seen else total / (total + k)
        if value == 0:
            return 1.0
        n = read("n_category", of)
        counts = [read("cell", of, *cell) for cell in _cells(value)]
        return (min(*counts, n) + k) / (n + k)

    def _spread(self, mean: float, n: float, away: float) -> float:
        k = formulas.SHRINK
        return (math.pi / 2) ** 0.5 * (away + k * formulas.PRIOR_SPREAD * abs(mean)) / (n + k)

    def _level(self, state: Any, of: str, half: int, now: int) -> tuple[float, float]:
        n = self._read(state, ("n", of, half), half, now)
        level = self._read(state, ("kept", of, half), half, now) / n
        return level, self._spread(level, n, self._read(state, ("kept_away", of, half), half, now))

    def _after(
        self, state: Any, now: int, time: int, numbers: dict[str, float | None], categories: dict[str, int]
    ) -> dict[Any, Any]:
        after: dict[Any, Any] = {"last": now}
        for name, value in state.items():
            if name == "last":
                continue
            after[name] = value if name[0] == "set" else self._read(state, name, name[-1], now)

        def add(half: int, amount: float, *name: Any) -> None:
            weight = 2.0 ** (-(now - time) / half)
            after[*name, half] = after.get((*name, half), 0.0) + weight * amount

        done = set()
        for feature in self._plan.features:
            half, of, statistic = half_life(feature), feature.of or "", feature.statistic
            parts: list[tuple[float, tuple[Any, ...]]] = []
            if statistic in ("count", "novelty"):
                parts.append((1.0, ("count",)))
            if statistic in ("sum", "mean", "deviation") and numbers[of] is not None:
                x = float(numbers[of] or 0.0)
                parts += [(1.0, ("n", of)), (x, ("sum", of))]
                n = self._read(state, ("n", of, half), half, now)
                if statistic == "deviation" and not n:
                    first = formulas.PRIOR_SPREAD * abs(x)
                    parts += [(first, ("away", of)), (x, ("kept", of)), (first, ("kept_away", of))]
                elif statistic == "deviation":
                    mean = self._read(state, ("sum", of, half), half, now) / n
                    away = self._read(state, ("away", of, half), half, now)
                    bound = formulas.BOUND * self._spread(mean, n, away)
                    level, _ = self._level(state, of, half, now)
                    parts.append((abs(x - mean), ("away", of)))
                    parts.append((max(mean - bound, min(mean + bound, x)), ("kept", of)))
                    parts.append((min(abs(x - level), bound), ("kept_away", of)))
            if statistic == "share" and categories[of]:
                parts.append((1.0, ("n_category", of)))
                parts += [(1.0, ("cell", of, *cell)) for cell in _cells(categories[of])]
            if statistic == "novelty" and categories[of]:
                name = ("set", of, half, now // half)
                after[name] = after.get(name, set()) | set(_bits(categories[of]))
            for amount, part in parts:
                if (part, half) not in done:
                    done.add((part, half))
                    add(half, amount, *part)
        return after


def _cells(value: int) -> list[tuple[int, int]]:
    return [(row, (value >> (8 * row)) % SKETCH_CELLS) for row in range(SKETCH_ROWS)]


def _bits(value: int) -> list[int]:
    return [(value >> (16 + 8 * i)) % (64 * NOVELTY_WORDS) for i in range(NOVELTY_HASHES)]
