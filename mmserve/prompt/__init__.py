"""From messages to a ``Prompt``, and from token ids back to text. Torch-free.

``builder`` chat template + pictures -> token ids and placeholder ranges; ``layouts`` what each family adds to that,
in the terms of ``layout``; ``positions``; ``detokenizer`` incremental text; ``stop`` stop strings; ``specials``,
``template`` and ``text`` are the builder's own parts.
"""

from mmserve.prompt.builder import PromptBuilder
from mmserve.prompt.detokenizer import Detokenizer, TokenTable
from mmserve.prompt.layout import Layout
from mmserve.prompt.layouts import layout_for
from mmserve.prompt.positions import mrope_positions
from mmserve.prompt.stop import StopChecker

__all__ = ["Detokenizer", "Layout", "PromptBuilder", "StopChecker", "TokenTable", "layout_for", "mrope_positions"]
