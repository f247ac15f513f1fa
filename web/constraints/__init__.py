"""What the answer must look like, between the wire and ``mmserve.grammar.spec``, and back.

``spellings`` every way in which clients ask for it; ``structural`` structural tags; ``leaves`` the single values in
them; ``report`` how it was kept, for the answer.
"""

from web.constraints.report import Verdict, chat_choice, chat_extra, verdict_on, vqa_answer
from web.constraints.spellings import Wanted, constraint_of, from_chat, from_form, from_sampling_params, naming

__all__ = [
    "Verdict",
    "Wanted",
    "chat_choice",
    "chat_extra",
    "constraint_of",
    "from_chat",
    "from_form",
    "from_sampling_params",
    "naming",
    "verdict_on",
    "vqa_answer",
]
