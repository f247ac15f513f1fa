"""Small random checkpoints in the published Hugging Face layout, for tests on a CPU.

They differ from a real model in size only: same files, same weight names, same tokenizer pipeline and special tokens.
Norms and biases are random too, so that a parameter which is not loaded, or loaded into the wrong place, shows.
"""

from tests.checkpoints.cogvlm import COGVLMS, tiny_cogvlm
from tests.checkpoints.general import GENERALS, tiny_general
from tests.checkpoints.llava import LLAVAS, tiny_llava
from tests.checkpoints.qwen2_audio import tiny_qwen2_audio
from tests.checkpoints.qwen2_vl import tiny_qwen2_vl
from tests.checkpoints.qwen_vl import QWEN_VLS, tiny_qwen_vl
from tests.checkpoints.text import TEXT_MODELS, tiny_text
from tests.checkpoints.tokenizer import QWEN_CHAT_TEMPLATE, QWEN_SPECIAL_TOKENS, tiny_tokenizer_json

__all__ = [
    "COGVLMS",
    "GENERALS",
    "LLAVAS",
    "QWEN_CHAT_TEMPLATE",
    "QWEN_SPECIAL_TOKENS",
    "QWEN_VLS",
    "TEXT_MODELS",
    "tiny_cogvlm",
    "tiny_general",
    "tiny_llava",
    "tiny_qwen2_audio",
    "tiny_qwen2_vl",
    "tiny_qwen_vl",
    "tiny_text",
    "tiny_tokenizer_json",
]
