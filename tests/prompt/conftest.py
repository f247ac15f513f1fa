from __future__ import annotations

import pytest

from mmserve.checkpoint import Checkpoint
from mmserve.config import Limits
from mmserve.prompt import PromptBuilder


@pytest.fixture(scope="session")
def builder(checkpoint: Checkpoint) -> PromptBuilder:
    return PromptBuilder(checkpoint, Limits())
