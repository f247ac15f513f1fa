"""From log-probabilities of choices to what is told of them. A leaf."""

from __future__ import annotations

import math
from collections.abc import Sequence


def softmax(logprobs: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Probabilities in proportion to ``exp(logprob / temperature)``; equal ones where all are impossible."""
    highest = max(logprobs)
    if highest == -math.inf:
        return [1 / len(logprobs)] * len(logprobs)
    weights = [math.exp((each - highest) / temperature) for each in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def label_mass(logprobs: Sequence[float]) -> float:
    """The probability of all choices together: how much of what the model would say they cover."""
    return min(1.0, math.fsum(map(math.exp, logprobs)))
