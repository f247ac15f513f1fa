"""Every family's greedy answers are those of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import LLAVAS, TEXT_MODELS, tiny_llava, tiny_qwen2_vl, tiny_text
from tests.models.equality import cases, check_equality

PICTURES = (0, 1, 2, 3, 1, 1, 1, 1, 0, 2, 1, 3, 1, 1, 1, 2, 0, 1, 3, 1)


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_models_that_read_text(kind: str, tmp_path: Path) -> None:
    tally = check_equality(tiny_text(tmp_path / kind, kind), cases([0] * 20))
    assert (tally.compared, tally.refused) == (80, 0)
    assert tally.excused <= 1


@pytest.mark.parametrize("kind", LLAVAS)
def test_llava(kind: str, tmp_path: Path) -> None:
    tally = check_equality(tiny_llava(tmp_path / kind, kind), cases(PICTURES))
    assert (tally.compared, tally.refused) == (80, 0)
    assert tally.excused <= 1


def test_qwen2_vl(tmp_path: Path) -> None:
    tally = check_equality(tiny_qwen2_vl(tmp_path / "tiny"), cases(PICTURES))
    assert tally.compared + 4 * tally.refused == 80
    assert 0 < tally.refused < 10  # some are longer than this family takes
    assert tally.excused <= 1
