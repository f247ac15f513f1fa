"""``/metrics`` over a service: what is counted where, and that the catalogue names what the engine really has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import EngineConfig
from mmserve.engine.build import build_engine
from mmserve.engine.metrics import TOTALS
from mmserve.errors import CorruptPicture, EngineUnavailable, QueueFull
from mmserve.types import Request, TokenEvent
from tests.web.fakes import FakeEngine, Step, png, say
from tests.web.operations.reading import Metric, read
from web.operations.catalogue import CATALOGUE, PREFIX, engine_families
from web.operations.exposition import CONTENT_TYPE
from web.operations.metrics import BATCH_OUTCOMES, ServiceMetrics

pytestmark = pytest.mark.anyio


async def metrics_of(http: httpx.AsyncClient) -> dict[str, Metric]:
    response = await http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == CONTENT_TYPE
    return read(response.text)


async def ask(http: httpx.AsyncClient) -> httpx.Response:
    return await http.post("/v1/vqa", files=[("image", ("a.png", png(), "image/png"))], data={"question": "What?"})


def total(metrics: Mapping[str, Metric], name: str, **labels: str) -> float:
    metric = metrics[PREFIX + name]
    suffix = "_count" if metric.kind == "histogram" else ""
    return metric.value(PREFIX + name + suffix, **labels)


async def test_an_answer_is_timed_and_counted(http: httpx.AsyncClient) -> None:
    assert (await ask(http)).status_code == 200
    metrics = await metrics_of(http)
    assert total(metrics, "requests_total", finished_reason="stop") == 1
    assert total(metrics, "time_to_first_token_seconds") == 1
    assert total(metrics, "inter_token_latency_seconds") == 2
    assert total(metrics, "e2e_request_latency_seconds") == 1
    assert metrics[PREFIX + "request_generation_tokens"].value(PREFIX + "request_generation_tokens_sum") == 3
    assert total(metrics, "http_requests_total", handler="/v1/vqa", method="POST", status="200") == 1
    assert total(metrics, "ready", model_name="pocket-vl") == 1


async def test_every_sample_says_the_model(http: httpx.AsyncClient) -> None:
    await ask(http)
    for metric in (await metrics_of(http)).values():
        assert all(dict(labels)["model_name"] == "pocket-vl" for _, labels in metric.samples)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CorruptPicture("it is damaged"), "refused"),
        (QueueFull("later"), "refused"),
        (EngineUnavailable("it stopped"), "error"),
        (RuntimeError("a fault"), "error"),
    ],
)
async def test_ends_are_told_apart(http: httpx.AsyncClient, engine: FakeEngine, error: Exception, reason: str) -> None:
    engine.script = lambda _: [error]
    assert (await ask(http)).status_code >= 400
    metrics = await metrics_of(http)
    assert total(metrics, "requests_total", finished_reason=reason) == 1
    assert total(metrics, "time_to_first_token_seconds") == 0
    assert total(metrics, "e2e_request_latency_seconds") == 0


async def test_paths_and_methods_make_no_series_of_their_own(http: httpx.AsyncClient) -> None:
    for path in ("/a", "/b", "/v1/models/a", "/v1/models/b"):
        await http.get(path)
    await http.request("BREW", "/a")
    counted = (await metrics_of(http))[PREFIX + "http_requests_total"]
    name = PREFIX + "http_requests_total"
    assert counted.value(name, handler="other", method="GET", status="404") == 2
    assert counted.value(name, handler="/v1/models/{name:path}", method="GET", status="404") == 2
    assert counted.value(name, handler="other", method="other") == 1


async def test_tokens_that_come_together_share_their_time(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    def script(request: Request) -> Iterator[Step]:
        first, last = say("a", "b", request=request)
        assert isinstance(last, TokenEvent)
        yield first
        yield dataclasses.replace(last, token_ids=(2, 3, 4))

    engine.script = script
    await ask(http)
    assert total(await metrics_of(http), "inter_token_latency_seconds") == 3


def test_the_catalogue_names_what_an_engine_has(checkpoint: Checkpoint) -> None:
    engine = build_engine(checkpoint, EngineConfig(device="cpu", kv_slots=256))
    try:
        stats = {**engine.stats(), "engine_restarts": 0.0}  # which is its supervisor's to say
    finally:
        engine.close()
    families = list(engine_families(stats))
    assert [family.name for family in families] == [PREFIX + entry.name for entry in CATALOGUE]
    for family, entry in zip(families, CATALOGUE, strict=True):
        assert len(family.samples) == len(entry.samples), family.name
    sources = {s for entry in CATALOGUE for s in entry.samples.values() if isinstance(s, str)}
    assert sources <= stats.keys()
    assert stats.keys() >= TOTALS


def test_what_prometheus_takes_for_a_counter_goes_on_when_the_engine_starts_again() -> None:
    kinds = {source: entry.kind for entry in CATALOGUE for source in entry.samples.values() if isinstance(source, str)}
    assert {source for source, kind in kinds.items() if kind == "counter"} <= TOTALS | {"engine_restarts"}
    assert not {source for source, kind in kinds.items() if kind == "gauge"} & TOTALS


def test_an_engine_that_says_less_has_fewer_samples() -> None:
    assert not [family for family in engine_families({}) if family.samples]


def test_usage_counts_what_cannot_be_evicted() -> None:
    stats = {"slots_total": 100.0, "slots_free": 20.0, "slots_evictable": 30.0}
    found = {family.name: family.samples for family in engine_families(stats)}
    assert found[PREFIX + "kv_cache_usage_perc"][0].value == 0.5
    assert found[PREFIX + "num_used_tokens"][0].value == 50


def test_the_guide_lists_every_metric_and_no_other() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "service.md").read_text(encoding="utf-8")
    table = guide.partition("### Metrics")[2].partition("### Log")[0]
    listed: set[str] = set()
    for cell in re.findall(
        r"`([a-z_0-9{},]+)`", "".join(row.split("|")[2] for row in table.splitlines() if "|" in row)
    ):
        before, brace, rest = cell.partition("{")
        inside, _, after = rest.partition("}")
        listed |= {before + middle + after for middle in inside.split(",")} if brace and after else {before}
    shown = re.findall(r"# TYPE (\S+) ", ServiceMetrics().text({}, model="m", version="0", ready=True))
    real = {*shown, *(PREFIX + entry.name for entry in CATALOGUE)}
    real |= {family.name for family in ServiceMetrics().families()}
    values = {"stop", "length", "abort", "refused", "error", "system", "picture", "history"}
    values |= set(BATCH_OUTCOMES)
    assert listed - values == {name.removeprefix(PREFIX) for name in real}
