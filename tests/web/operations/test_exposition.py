"""What is written is Prometheus' text format, whatever is counted and however it is named."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.web.operations.reading import read
from web.operations.exposition import Counter, Family, Histogram, Sample, number, render

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"))


@given(label=TEXT, help=TEXT, value=st.floats(allow_nan=False))
def test_any_text_and_number_comes_back(label: str, help: str, value: float) -> None:
    family = Family("m:a", "gauge", help, (Sample(value, (("x", label),)),))
    read_back = read(render([family], (("model_name", label),)))["m:a"]
    assert read_back.help == help
    assert read_back.samples == {("m:a", (("model_name", label), ("x", label))): value}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3, "3"), (0.5, "0.5"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN"), (1e300, "1e+300")],
)
def test_numbers_are_written_as_prometheus_reads_them(value: float, text: str) -> None:
    assert number(value) == text


@given(st.lists(st.floats(0, 100), max_size=50), st.integers(1, 5))
def test_a_histogram_counts_what_is_at_most_its_bounds(values: list[float], times: int) -> None:
    histogram = Histogram("h", "H.", (1, 2.5, 10))
    for value in values:
        histogram.observe(value, times)
    metric = read(render([histogram.family()]))["h"]
    for bound in ("1", "2.5", "10"):
        assert metric.value("h_bucket", le=bound) == times * sum(value <= float(bound) for value in values)
    assert metric.value("h_count") == times * len(values)
    assert metric.value("h_sum") == pytest.approx(times * sum(values))


def test_a_counter_bounds_its_series() -> None:
    counter = Counter("c_total", "C.", {"kind": ("a", "b"), "free": None})
    for kind in ("a", "b", "c", "d"):
        counter.add(kind, "x")
    metric = read(render([counter.family()]))["c_total"]
    assert metric.value("c_total", kind="a", free="x") == 1
    assert metric.value("c_total", kind="other", free="x") == 2
    assert len(metric.samples) == 3


def test_a_counter_without_labels_starts_at_zero() -> None:
    counter = Counter("c_total", "C.")
    assert read(render([counter.family()]))["c_total"].value("c_total") == 0
    counter.add(amount=2.5)
    assert read(render([counter.family()]))["c_total"].value("c_total") == 2.5


def test_a_family_without_samples_is_left_out() -> None:
    assert render([Family("g", "gauge", "G.", ())]) == ""


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "ä"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Family(name, "gauge", "", ())
    with pytest.raises(ValueError, match="name"):
        Family("ok", "gauge", "", (Sample(1, ((name, ""),)),))


def test_two_families_of_one_name_are_refused() -> None:
    family = Family("g", "gauge", "G.", (Sample(1),))
    with pytest.raises(ValueError, match="two families"):
        render([family, family])


@pytest.mark.parametrize("bounds", [(2, 1), (1, 1), (1, math.inf)])
def test_bounds_must_ascend(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        Histogram("h", "H.", bounds)
