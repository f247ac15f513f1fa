from __future__ import annotations

import math

import pytest

from mmserve.probabilities import label_mass, softmax


def test_softmax_is_in_proportion() -> None:
    assert softmax([math.log(0.5), math.log(0.25)]) == pytest.approx([2 / 3, 1 / 3])
    assert softmax([-1000.0, -1001.0], temperature=1.0) == pytest.approx([0.7310586, 0.2689414])
    assert softmax([math.log(0.5), math.log(0.25)], temperature=0.5) == pytest.approx([0.8, 0.2])


def test_what_is_impossible_has_nothing_and_if_all_is_all_are_alike() -> None:
    assert softmax([0.0, -math.inf]) == [1.0, 0.0]
    assert softmax([-math.inf] * 4) == [0.25] * 4


def test_the_mass_is_a_probability() -> None:
    assert label_mass([math.log(0.5), math.log(0.2)]) == pytest.approx(0.7)
    assert label_mass([0.0, 0.0]) == 1.0
    assert label_mass([-math.inf]) == 0.0
