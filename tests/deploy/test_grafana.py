"""The dashboard asks for what the server has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from web.operations.catalogue import CATALOGUE, PREFIX
from web.operations.exposition import Family
from web.operations.metrics import ServiceMetrics

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana.json").read_text(encoding="utf-8"))
NAME = re.compile(r"[a-zA-Z_]+:[a-zA-Z0-9_:]+")


def families() -> dict[str, str]:
    """The name and kind of all that ``/metrics`` can show, as Prometheus stores it."""
    entries = {PREFIX + entry.name: entry.kind for entry in CATALOGUE}
    own: dict[str, str] = {family.name: family.kind for family in ServiceMetrics().families()}
    shown = re.findall(r"# TYPE (\S+) (\S+)", ServiceMetrics().text({}, model="m", version="0", ready=True))
    return {**entries, **own, **dict(shown)}


def stored(name: str, kind: str) -> set[str]:
    return {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}


def queries() -> list[str]:
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return found + [variable["definition"] for variable in DASHBOARD["templating"]["list"] if "definition" in variable]


@pytest.mark.parametrize("query", queries())
def test_every_query_names_metrics_that_exist(query: str) -> None:
    names = NAME.findall(query)
    series = {series: kind for name, kind in families().items() for series in stored(name, kind)}
    assert names
    assert set(names) <= series.keys()
    assert query.count("(") == query.count(")")
    for name in names:
        changing = series[name] != "gauge"
        assert (f"rate({name}{{" in query) == changing, "counters are looked at by their rate, gauges as they are"


def test_quantiles_are_of_buckets() -> None:
    for query in queries():
        assert ("histogram_quantile" in query) == ("_bucket" in query)


def labels_of(family: Family) -> set[str]:
    return {label for sample in family.samples for label, _ in sample.labels}


def test_what_is_grouped_by_is_a_label() -> None:
    metrics = ServiceMetrics()
    metrics.requests.add("stop")
    metrics.http.add("/", "GET", "200")
    metrics.batch_requests.add("completed")
    known = {family.name: labels_of(family) for family in metrics.families()}
    known |= {PREFIX + entry.name: {label for key in entry.samples for label, _ in key} for entry in CATALOGUE}
    for query in queries():
        for group, name in re.findall(r"by \((\w+)\) \(rate\((mmserve:\w+?)(?:_bucket)?\{", query):
            assert group in known[name], query


def panels() -> Iterator[Any]:
    yield from DASHBOARD["panels"]


def test_panels_have_titles_ids_and_places_of_their_own() -> None:
    assert (
        len({panel["id"] for panel in panels()}) == len({panel["title"] for panel in panels()}) == len(list(panels()))
    )
    cells = [
        (x, panel["gridPos"]["y"])
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_important_metrics_are_on_it() -> None:
    asked = {name for query in queries() for name in NAME.findall(query)}
    missing = [
        name
        for name, kind in families().items()
        if not stored(name, kind) & asked and name.removeprefix(PREFIX) not in NOT_SHOWN
    ]
    assert not missing


NOT_SHOWN = {
    "build_info",
    "num_used_tokens",
    "tier_damaged_total",
    "tier_max_total_num_tokens",
    "tier_num_cached_tokens",
    "encoder_cache_pictures",
    "encoder_cache_bytes",
    "engine_steps_total",
    "engine_restarts_total",
}
"""Left to whoever looks for a cause."""
