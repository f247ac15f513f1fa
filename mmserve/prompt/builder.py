"""Messages with media to a ``Prompt``: chat template, tokens, placeholders."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from mmserve.checkpoint import Checkpoint, read_json
from mmserve.config import Limits
from mmserve.errors import CheckpointError, InvalidField, PromptTooLong
from mmserve.prompt.detokenizer import Detokenizer, TokenTable, load_tokenizer
from mmserve.prompt.layout import Layout, Rows, Segment, rows_of
from mmserve.prompt.layouts import layout_for
from mmserve.prompt.media import NAMES, MediaReader, Shown
from mmserve.prompt.pieces import Piece, assembled, expanded_pieces, rows_piece, system_tokens
from mmserve.prompt.specials import SpecialTokens
from mmserve.prompt.template import ChatTemplate
from mmserve.prompt.text import TextEncoder
from mmserve.types import PART_KINDS, MediaKind, Message, Picture, Prompt, TextPart

ROLES = ("system", "user", "assistant")

_MAX_NFC_SHRINKAGE = 4
"""Normalisation to NFC, which tokenizers may do, leaves at least a quarter of a text's UTF-8 bytes."""


class PromptBuilder:
    """Builds prompts for one model. Keeps nothing between calls, so several threads may share it."""

    def __init__(self, checkpoint: Checkpoint, limits: Limits, layout: Layout | None = None) -> None:
        """Reads tokenizer and chat template; ``layout`` is that of the checkpoint's family, unless another is given.

        Raises ``CheckpointError`` and ``ConfigError``.
        """
        self._checkpoint = checkpoint
        self.tokenizer = load_tokenizer(checkpoint.tokenizer_path)
        self.tokenizer.encode_special_tokens = True  # what is encoded here is text; specials come from the template
        self._text = TextEncoder(self.tokenizer)
        self.layout = layout or layout_for(checkpoint)
        self._media = MediaReader(checkpoint, self.layout, limits)
        self._specials = SpecialTokens(self.tokenizer.get_added_tokens_decoder(), mark=self.layout.mark)
        self._template = ChatTemplate(checkpoint.template or self.layout.template or "", _named_tokens(checkpoint))
        self.geometry = self.layout.geometry
        vocabulary = self.tokenizer.get_vocab()
        self._longest_token = max(map(len, vocabulary))
        self._vocabulary = max(vocabulary.values()) + 1
        self._table = TokenTable(self.tokenizer)
        self._mark = self._specials.ids.get(self.layout.mark or "", self.layout.pad_id) if self.geometry else None
        if self._mark is not None and self._mark not in self._specials.ids.values():
            raise CheckpointError(f"image_token_id {self._mark} is no special token of the tokenizer")
        self._marks: dict[int, MediaKind] = {medium.pad_id: kind for kind, medium in self.layout.others.items()}
        if self._mark is not None:
            self._marks[self._mark] = "image"

    def build(self, messages: Sequence[Message], *, cache_salt: str = "", add_generation_prompt: bool = True) -> Prompt:
        """The prompt of a conversation. Pictures are hashed and measured, not decoded.

        Callers' text never becomes a special token, and the k-th placeholder of a kind that the template writes stands
        for the k-th picture, video or sound. ``cache_salt`` keeps tenants' media apart in every cache.

        Raises ``InvalidField`` (roles, empty or undecodable text, what the template refuses), ``TooManyPictures``,
        ``TooManyMedia``, ``MediaError`` and ``PromptTooLong`` (which leaves at least one token for the answer);
        ``param`` says where.
        """
        _check(messages)
        counts = Counter(PART_KINDS[type(p)] for m in messages for p in m.parts if not isinstance(p, TextPart))
        self._media.check_count(counts, "messages")
        self._refuse_hopeless(_text_size(messages))
        shown = self._media.read(messages, cache_salt)
        inputs = [{"role": message.role, "content": self._content(message)} for message in messages]
        rendered = self._template.render(inputs, add_generation_prompt=add_generation_prompt)
        pieces = list(self._pieces(rendered, shown))
        opening = self._text.opening if self.layout.opens else ()
        if opening and tuple(pieces[0].ids[: len(opening)]) != opening:
            pieces.insert(0, Piece(opening, special=True))
        length = sum(len(piece.ids) for piece in pieces)
        if length >= self._checkpoint.max_model_len:
            raise self._too_long(f"{length:,}")
        system = system_tokens(pieces, [message.role for message in messages], int(add_generation_prompt))
        media = tuple(item for each in shown for item in each.items)
        return assembled(pieces, length, media, system_tokens=system, opens_answer=add_generation_prompt)

    def append_text(self, prompt: Prompt, text: str, *, end: bool = False) -> Prompt:
        """``prompt`` and a piece of the answer behind it, tokenised on its own as the model would write it.

        ``end`` puts the token behind it that ends a turn. Raises ``InvalidField`` for text that is not encodable and
        ``PromptTooLong`` where it does not fit the context.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidField("the text holds half of a surrogate pair, which is no character") from None
        behind_text = len(prompt) and int(prompt.token_ids[-1]) not in self._table.special_ids
        ids = self._text.continue_(text) if behind_text else self._text.encode(text, first=False)
        if end:
            ids.append(self._checkpoint.eos_token_ids[0])
        token_ids = np.concatenate([prompt.token_ids, np.array(ids, dtype=np.int64)])
        if len(token_ids) > self._checkpoint.max_model_len:
            raise self._too_long(f"{len(token_ids):,}")
        token_ids.setflags(write=False)
        return dataclasses.replace(prompt, token_ids=token_ids, opens_answer=prompt.opens_answer and not ids)

    def build_text(self, text: str, pictures: Sequence[bytes], *, cache_salt: str = "") -> Prompt:
        """The prompt that ``text`` is, as it stands: no chat template, and its special tokens are special tokens.

        So whoever wrote ``text`` is trusted with the whole prompt. Each placeholder token in it stands for the next
        of ``pictures``. Raises ``InvalidField`` (undecodable or empty text; another number of placeholders than of
        pictures), ``TooManyPictures``, ``PictureError`` and ``PromptTooLong`` (which leaves no room for an answer);
        ``param`` is ``text`` or ``images[k]``.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidField(
                "the text holds half of a surrogate pair, which is no character: send the whole character", param="text"
            ) from None
        self._refuse_hopeless(len(text), "text")
        ids: list[int] = []
        for run, special in self._specials.cut(text):
            if run:
                ids += self._text.encode(run, first=not ids)
            if special is not None:
                ids.append(special)
        if tuple(ids[: len(self._text.opening)]) != self._text.opening:
            ids = [*self._text.opening, *ids]
        return self._raw(ids, pictures, cache_salt, "text")

    def build_ids(self, ids: Sequence[int], pictures: Sequence[bytes], *, cache_salt: str = "") -> Prompt:
        """The prompt of these token ids. Placeholders as in :meth:`build_text`; a run of them that is as long as a
        picture's rows, for every picture, is understood too.

        Raises as :meth:`build_text` does; ``param`` is ``input_ids`` or ``images[k]``.
        """
        for id_ in ids:
            if not 0 <= id_ < self._vocabulary:
                raise InvalidField(
                    f"{id_} is no token id; {self._checkpoint.name} has 0 to {self._vocabulary - 1}", param="input_ids"
                )
        return self._raw(ids, pictures, cache_salt, "input_ids")

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens, as answers have it; with ``special``, special tokens are spelled out."""
        detokenizer = Detokenizer(self._table, special=special)
        return detokenizer.push(ids) + detokenizer.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, a special token its name; nothing for an id that belongs to no token."""
        return self._table.bytes_of(token_id)

    def _raw(self, ids: Sequence[int], pictures: Sequence[bytes], cache_salt: str, where: str) -> Prompt:
        if not ids:
            raise InvalidField("the prompt is empty; send at least one token", param=where)
        read = self._media.pictures(pictures, cache_salt)
        pieces = expanded_pieces(ids, self.layout, read) if read else [Piece(ids)]
        if pieces is None or (not read and self._mark in ids):
            pieces = self._placed(ids, read, where)
        length = sum(len(piece.ids) for piece in pieces)
        if length > self._checkpoint.max_model_len:
            raise self._too_long(f"{length:,}", where)
        return assembled(pieces, length, read)

    def _placed(self, ids: Sequence[int], pictures: Sequence[Picture], where: str) -> list[Piece]:
        """``ids`` with room for the pictures' rows in the place of their marks."""
        marks = sum(id_ == self._mark for id_ in ids)
        if marks != len(pictures):
            name = next((name for name, id_ in self._specials.ids.items() if id_ == self._mark), "placeholder")
            raise InvalidField(
                f"the prompt has {marks} placeholders for {len(pictures)} pictures: write one {name} for each picture",
                param=where,
            )
        pieces: list[Piece] = []
        placed = 0
        for is_mark, run in groupby(ids, lambda id_: id_ == self._mark):
            if not is_mark:
                pieces.append(Piece(list(run)))
                continue
            for _ in run:
                pieces += self._expanded(placed, pictures[placed])
                placed += 1
        return pieces

    def _expanded(self, number: int, picture: Picture) -> Iterator[Piece]:
        for segment in self.layout.expand(picture):
            if isinstance(segment, Rows):
                yield rows_piece(self.layout.pad_id, segment, number)
            else:
                yield Piece((segment,) if isinstance(segment, int) else self._text.encode(segment, first=False))

    def append_choices(
        self, prompt: Prompt, opening: str, choices: Sequence[str], *, end: bool = False
    ) -> tuple[list[Prompt], int]:
        """``prompt`` with ``opening`` and each of ``choices`` behind it, and the first position to score in all.

        The opening is encoded together with a choice, as the model would have it ("a " and "cat" are "a" and " cat"),
        so a choice may take the opening's last token with it: what is scored begins with the first token that any
        choice has a part in. Raises as :meth:`append_text` does.
        """
        opened = self.append_text(prompt, opening)
        said = [self.append_text(prompt, opening + choice, end=end) for choice in choices]
        start = min(len(opened), *(len(each) - 1 for each in said))
        for each in said:
            different = (opened.token_ids[:start] != each.token_ids[:start]).nonzero()[0]
            start = int(different[0]) if len(different) else start
        return said, start

    def _refuse_hopeless(self, size: int, where: str = "messages") -> None:
        """Refuse before tokenising ``size`` characters that are too many even if every token were the vocabulary's
        longest."""
        at_least = size // (self._longest_token * _MAX_NFC_SHRINKAGE)
        if at_least >= self._checkpoint.max_model_len:
            raise self._too_long(f"more than {at_least:,}", where)

    def _too_long(self, length: str, where: str = "messages") -> PromptTooLong:
        return PromptTooLong(
            # Clients tell this error from others by these words: "this model's maximum context length is".
            f"the prompt has {length} tokens, but this model's maximum context length is "
            f"{self._checkpoint.max_model_len:,}, its answer included: shorten the text, or send fewer or smaller "
            "pictures",
            param=where,
        )

    def _content(self, message: Message) -> str | list[dict[str, Any]]:
        """A message's content in Hugging Face's form: a plain string if it is only text and the template takes it."""
        texts = [self._specials.defuse(part.text) for part in message.parts if isinstance(part, TextPart)]
        if len(texts) == len(message.parts) and self._template.takes_strings:
            return "".join(texts)
        return [
            {"type": "text", "text": self._specials.defuse(part.text)}
            if isinstance(part, TextPart)
            else _media_content(PART_KINDS[type(part)])
            for part in message.parts
        ]

    def _pieces(self, rendered: str, shown: Sequence[Shown]) -> Iterator[Piece]:
        """The rendered conversation, cut where special tokens and media stand; text that pictures bring with them is
        encoded together with its neighbours'."""
        text, first = "", True
        waiting = {kind: [each for each in shown if each.kind == kind] for kind in self._marks.values()}
        marks: Counter[MediaKind] = Counter()
        for run, special in self._specials.split(rendered):
            text += run
            segments: Sequence[Segment] = () if special is None else (special,)
            kind = None if special is None else self._marks.get(special)
            here = None
            if kind is not None:
                here = waiting[kind][marks[kind]] if marks[kind] < len(waiting[kind]) else None
                segments = () if here is None else self._segments(here)
                marks[kind] += 1
            for segment in segments:
                if isinstance(segment, str):
                    text += segment
                    continue
                if text:
                    yield Piece(self._text.encode(text, first=first))
                text, first = "", self.layout.apart and isinstance(segment, Rows)
                if isinstance(segment, Rows):
                    assert here is not None
                    yield rows_piece(self._pad_id(here.kind), segment, here.first)
                else:
                    yield Piece((segment,), special=True)
        if text:
            yield Piece(self._text.encode(text, first=first))
        for kind, sent in waiting.items():
            if marks[kind] != len(sent):
                name = NAMES[kind]
                raise InvalidField(
                    f"the model's chat template made room for {marks[kind]} {name}s where {len(sent)} were sent: "
                    f"put the {name}s into user messages",
                    param="messages",
                )

    def _segments(self, shown: Shown) -> Sequence[Segment]:
        """What takes the place of its mark."""
        only = shown.items[0]
        return self.layout.expand(only) if isinstance(only, Picture) else rows_of(shown.items)

    def _pad_id(self, kind: MediaKind) -> int:
        return self.layout.pad_id if kind == "image" else self.layout.others[kind].pad_id


def _media_content(kind: MediaKind) -> dict[str, Any]:
    """In Hugging Face's form. Templates that know sounds and videos look for the field which would hold them."""
    return {"type": kind} if kind == "image" else {"type": kind, kind: None}


def _text_size(messages: Sequence[Message]) -> int:
    """In characters."""
    return sum(len(part.text) for message in messages for part in message.parts if isinstance(part, TextPart))


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidField("there are no messages: send at least one user message", param="messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")


def _check_message(message: Message, where: str) -> None:
    if message.role not in ROLES:
        raise InvalidField(f"the role {message.role!r} is not known: use {', '.join(ROLES)}", param=f"{where}.role")
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    if message.role == "user" and len(texts) == len(message.parts) and not "".join(texts).strip():
        raise InvalidField("a user message is empty: send a question or a picture", param=f"{where}.content")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise InvalidField(
            "the text holds half of a surrogate pair, which is no character: send the whole character",
            param=f"{where}.content",
        ) from None


def _named_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """``bos_token`` and the like, which templates may use, from ``tokenizer_config.json``."""
    settings = read_json(checkpoint.tokenizer_path / "tokenizer_config.json", missing_ok=True)
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found
