"""Prometheus' text exposition format, version 0.0.4: families of samples -> the text of ``/metrics``.

The format: https://github.com/prometheus/docs/blob/main/docs/instrumenting/exposition_formats.md.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = tuple[tuple[str, str], ...]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: the family's name with ``suffix``, its labels and its value."""

    value: float
    labels: Labels = ()
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """All samples of one name. Raises ``ValueError`` for names that the format does not have."""

    name: str
    kind: Kind
    help: str
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a metric's name")
        for sample in self.samples:
            if bad := [label for label, _ in sample.labels if not _LABEL.fullmatch(label)]:
                raise ValueError(f"{bad[0]!r} is not a label's name")


def render(families: Iterable[Family], common: Labels = ()) -> str:
    """The text, every sample with the labels ``common`` before its own. A family without samples is left out."""
    lines: list[str] = []
    seen: set[str] = set()
    for family in families:
        if not family.samples:
            continue
        if family.name in seen:
            raise ValueError(f"two families are named {family.name}")
        seen.add(family.name)
        lines.append(f"# HELP {family.name} {_escape(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [_line(family.name + s.suffix, common + s.labels, s.value) for s in family.samples]
    return "\n".join(lines) + "\n" if lines else ""


def _line(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{label}="{_escape_label(text)}"' for label, text in labels)
    return f"{name}{{{inner}}} {number(value)}" if inner else f"{name} {number(value)}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_label(text: str) -> str:
    return _escape(text).replace('"', '\\"')


def number(value: float) -> str:
    """A value as Go's ``ParseFloat`` reads it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


class Counter:
    """A count for each combination of ``labels``, of which each may have the values that are listed, or ``"other"``.

    So the number of series is bounded, whatever is counted. A label without a list is for values that are bounded
    where they come from. Not thread safe.
    """

    def __init__(self, name: str, help: str, labels: Mapping[str, Sequence[str] | None] | None = None) -> None:
        self._name = name
        self._help = help
        self._known = {label: None if values is None else frozenset(values) for label, values in (labels or {}).items()}
        self._counts: dict[tuple[str, ...], float] = {} if self._known else {(): 0.0}

    def add(self, *values: str, amount: float = 1.0) -> None:
        """Count for the label values ``values``, in the order of ``labels``."""
        bounded = zip(values, self._known.values(), strict=True)
        key = tuple(value if known is None or value in known else "other" for value, known in bounded)
        self._counts[key] = self._counts.get(key, 0.0) + amount

    def family(self) -> Family:
        samples = (Sample(count, tuple(zip(self._known, key, strict=True))) for key, count in self._counts.items())
        return Family(self._name, "counter", self._help, tuple(samples))


class Gauge:
    """A number for each value of one label. Not thread safe."""

    def __init__(self, name: str, help: str, label: str, values: Sequence[str]) -> None:
        self._name = name
        self._help = help
        self._label = label
        self._now = dict.fromkeys(values, 0.0)

    def set(self, numbers: Mapping[str, float]) -> None:
        """``numbers`` by the label's value; those that it leaves out are 0."""
        self._now = {value: numbers.get(value, 0.0) for value in self._now}

    def family(self) -> Family:
        samples = tuple(Sample(number, ((self._label, value),)) for value, number in self._now.items())
        return Family(self._name, "gauge", self._help, samples)


class Histogram:
    """How many values were at most each of ``bounds``, which ascend. Not thread safe; ``observe`` costs a bisection."""

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        if list(bounds) != sorted(set(bounds)) or not all(math.isfinite(bound) for bound in bounds):
            raise ValueError("a histogram's bounds are finite and ascend")
        self._name = name
        self._help = help
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self) -> Family:
        samples: list[Sample] = []
        total = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            samples.append(Sample(total, (("le", number(bound)),), "_bucket"))
        samples += [Sample(self._sum, (), "_sum"), Sample(total, (), "_count")]
        return Family(self._name, "histogram", self._help, tuple(samples))
