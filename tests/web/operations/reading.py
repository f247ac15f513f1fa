"""A strict reader of Prometheus' text format, written from its description and not from our writer."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
VALUE = re.compile(r"NaN|[+-]Inf|[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass
class Metric:
    kind: str
    help: str
    samples: dict[Key, float] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        (found,) = [v for (n, pairs), v in self.samples.items() if n == name and labels.items() <= dict(pairs).items()]
        return found


def read(text: str) -> dict[str, Metric]:
    """The families by name. Fails where the text breaks a rule of the format."""
    assert text.endswith("\n")
    found: dict[str, Metric] = {}
    family = ""
    help_name, help_text = "", ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            _, _, help_name, help_text = line.split(" ", 3)
            assert help_name not in found, "a family must be in one piece"
        elif line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family == help_name
            assert kind in ("counter", "gauge", "histogram", "summary", "untyped")
            found[family] = Metric(kind, re.sub(r"\\\\|\\n", lambda m: ESCAPES[m[0]], help_text))
        else:
            name, labels, value = _sample(line)
            suffixes = ("_bucket", "_sum", "_count") if found[family].kind == "histogram" else ("",)
            assert name in [family + suffix for suffix in suffixes]
            assert (name, labels) not in found[family].samples, "a line must be unique"
            found[family].samples[name, labels] = value
    for name, metric in found.items():
        assert metric.samples
        _check(name, metric)
    return found


def _sample(line: str) -> tuple[str, tuple[tuple[str, str], ...], float]:
    matched = LINE.fullmatch(line)
    assert matched, line
    name, inner, value = matched.groups()
    assert VALUE.fullmatch(value), line
    labels: list[tuple[str, str]] = []
    at = 0
    while inner and at < len(inner):
        pair = PAIR.match(inner, at)
        assert pair, line
        labels.append((pair[1], re.sub(r'\\\\|\\"|\\n', lambda m: ESCAPES[m[0]], pair[2])))
        at = pair.end()
    assert len(dict(labels)) == len(labels), "a label may be given once"
    return name, tuple(labels), float(value.replace("Inf", "inf"))


def _check(name: str, metric: Metric) -> None:
    if metric.kind == "counter":
        assert name.endswith("_total")
        assert all(value >= 0 for value in metric.samples.values())
    if metric.kind != "histogram":
        return
    groups: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
    for (sample, labels), value in metric.samples.items():
        rest = tuple(pair for pair in labels if pair[0] != "le")
        if sample == name + "_bucket":
            groups.setdefault(rest, {})[float(dict(labels)["le"].replace("Inf", "inf"))] = value
    for rest, buckets in groups.items():
        assert list(buckets) == sorted(buckets)
        assert list(buckets.values()) == sorted(buckets.values()), "buckets are cumulative"
        assert buckets[math.inf] == metric.samples[name + "_count", rest]
        assert (name + "_sum", rest) in metric.samples
