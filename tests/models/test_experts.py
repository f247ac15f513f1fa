"""Tokens find the weights of their own expert."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmserve.models.experts import Experts, routed


def picture(x: Tensor) -> Tensor:
    return torch.cat((x * 2, x), 1)


def language(x: Tensor) -> Tensor:
    return torch.cat((-x, x), 1)


def refuse(x: Tensor) -> Tensor:
    raise AssertionError(f"{len(x)} tokens were taken for a picture's")


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_each_row_by_its_own(mask: list[bool]) -> None:
    x = torch.arange(3.0 * len(mask)).view(-1, 3)
    chosen = torch.tensor(mask)
    expected = torch.where(chosen[:, None], picture(x), language(x))
    assert torch.equal(routed(x, Experts(chosen), picture, language), expected)


def test_without_pictures_nothing_is_routed() -> None:
    x = torch.ones(2, 3)
    assert torch.equal(routed(x, None, refuse, language), language(x))


def test_some_of_the_tokens() -> None:
    experts = Experts(torch.tensor([False, True, True, False]))
    assert (experts.picture.tolist(), experts.language.tolist()) == ([1, 2], [0, 3])
    some = experts.select(torch.tensor([2, 0]))
    assert (some.picture.tolist(), some.language.tolist()) == ([0], [1])
