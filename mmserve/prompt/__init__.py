"""From messages to a ``Prompt``, and from token ids back to text. Torch-free.

``builder`` chat template + pictures -> token ids and placeholder ranges; ``positions`` M-RoPE; ``detokenizer``
incremental text; ``stop`` stop strings; ``specials`` and ``template`` are the builder's own parts.
"""

from mmserve.prompt.builder import PromptBuilder
from mmserve.prompt.detokenizer import Detokenizer, TokenTable
from mmserve.prompt.positions import mrope_positions
from mmserve.prompt.stop import StopChecker

__all__ = ["Detokenizer", "PromptBuilder", "StopChecker", "TokenTable", "mrope_positions"]
