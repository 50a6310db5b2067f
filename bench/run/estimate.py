"""How long the turns of a session take, told from its first turns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable


class Estimate:
    """The time left, once each method has answered one prompt.

    Start-up is not in it: every method is warmed up before.

    Args:
        methods: the method of every turn, in any order.
    """

    def __init__(self, methods: Iterable[str]) -> None:
        self._left = Counter(methods)
        self._unseen = set(self._left)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._turns: Counter[str] = Counter()

    def took(self, method: str, seconds: float) -> tuple[int, float] | None:
        """Takes a turn that has ended. With the first turn of the last method, (turns left, seconds
        that they take at the mean of their method); otherwise None."""
        self._left[method] -= 1
        if not self._unseen:
            return None
        self._seconds[method] += seconds
        self._turns[method] += 1
        self._unseen.discard(method)
        if self._unseen:
            return None
        rates = {name: self._seconds[name] / turns for name, turns in self._turns.items()}
        return self._left.total(), sum(rates[name] * n for name, n in self._left.items())
