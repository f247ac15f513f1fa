"""Messages with pictures to a ``Prompt``: chat template, tokens, placeholders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmserve.checkpoint import Checkpoint, read_json
from mmserve.config import Limits
from mmserve.errors import CheckpointError, InvalidField, PictureError, PromptTooLong, TooManyPictures
from mmserve.prompt.detokenizer import load_tokenizer
from mmserve.prompt.specials import SpecialTokens
from mmserve.prompt.template import ChatTemplate
from mmserve.types import ImagePart, IntArray, Message, Picture, PictureRange, Prompt, TextPart
from vision.decode import decoder_id
from vision.geometry import geometry_for
from vision.identity import fingerprint
from vision.picture import read_picture

ROLES = ("system", "user", "assistant")

_MAX_NFC_SHRINKAGE = 4
"""Normalisation to NFC, which tokenizers may do, leaves at least a quarter of a text's UTF-8 bytes."""


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Consecutive prompt tokens: text and special tokens, or (``picture`` set) a picture's placeholders."""

    ids: Sequence[int]
    picture: int | None = None
    special: bool = False


class PromptBuilder:
    """Builds prompts for one model. Keeps nothing between calls, so several threads may share it."""

    def __init__(self, checkpoint: Checkpoint, limits: Limits) -> None:
        """Reads tokenizer and chat template. Raises ``CheckpointError`` and ``ConfigError``."""
        self._checkpoint = checkpoint
        self._limits = limits
        self.tokenizer = load_tokenizer(checkpoint.path)
        self.tokenizer.encode_special_tokens = True  # what is encoded here is text; specials come from the template
        self._specials = SpecialTokens(self.tokenizer.get_added_tokens_decoder())
        self._template = ChatTemplate(checkpoint.template, _named_tokens(checkpoint))
        self.geometry = geometry_for(checkpoint.family, checkpoint.vision_config, checkpoint.processor)
        self.fingerprint = fingerprint(
            weights=checkpoint.fingerprint,
            vision_config=checkpoint.vision_config,
            processor=checkpoint.processor,
            geometry=self.geometry,
            decoder=decoder_id(),
        )
        self._longest_token = max(map(len, self.tokenizer.get_vocab()))
        if checkpoint.image_token_id not in self._specials.ids.values():
            raise CheckpointError(f"image_token_id {checkpoint.image_token_id} is no special token of the tokenizer")

    def build(self, messages: Sequence[Message], *, cache_salt: str = "", add_generation_prompt: bool = True) -> Prompt:
        """The prompt of a conversation. Pictures are hashed and measured, not decoded.

        Callers' text never becomes a special token, and the k-th placeholder that the template writes stands for
        the k-th picture. ``cache_salt`` keeps tenants' pictures apart in every cache.

        Raises ``InvalidField`` (roles, empty or undecodable text, what the template refuses), ``TooManyPictures``,
        ``PictureError`` and ``PromptTooLong`` (which leaves at least one token for the answer); ``param`` says where.
        """
        _check(messages, self._limits)
        self._refuse_hopeless(messages)
        pictures = self._pictures(messages, cache_salt)
        inputs = [{"role": message.role, "content": self._content(message)} for message in messages]
        rendered = self._template.render(inputs, add_generation_prompt=add_generation_prompt)
        pieces = list(self._pieces(rendered, pictures))
        length = sum(len(piece.ids) for piece in pieces)
        if length >= self._checkpoint.max_model_len:
            raise self._too_long(f"{length:,}")
        system = _system_tokens(pieces, [message.role for message in messages], int(add_generation_prompt))
        return _assembled(pieces, length, pictures, system)

    def _refuse_hopeless(self, messages: Sequence[Message]) -> None:
        """Refuse before tokenising what is too long even if every token were the vocabulary's longest."""
        size = sum(len(part.text) for message in messages for part in message.parts if isinstance(part, TextPart))
        at_least = size // (self._longest_token * _MAX_NFC_SHRINKAGE)
        if at_least >= self._checkpoint.max_model_len:
            raise self._too_long(f"more than {at_least:,}")

    def _too_long(self, length: str) -> PromptTooLong:
        return PromptTooLong(
            f"the prompt has {length} tokens, but {self._checkpoint.name} takes {self._checkpoint.max_model_len:,} "
            "including its answer: shorten the text, or send fewer or smaller pictures",
            param="messages",
        )

    def _pictures(self, messages: Sequence[Message], cache_salt: str) -> tuple[Picture, ...]:
        pictures = []
        for m, message in enumerate(messages):
            for p, part in enumerate(message.parts):
                if isinstance(part, ImagePart):
                    try:
                        pictures.append(self._picture(part, cache_salt))
                    except PictureError as error:
                        raise type(error)(error.message, param=f"messages[{m}].content[{p}]") from error.__cause__
        return tuple(pictures)

    def _picture(self, part: ImagePart, cache_salt: str) -> Picture:
        return read_picture(
            part.data,
            geometry=self.geometry,
            fingerprint=self.fingerprint,
            limits=self._limits,
            cache_salt=cache_salt,
        )

    def _content(self, message: Message) -> str | list[dict[str, Any]]:
        """A message's content in Hugging Face's form: a plain string if it is only text."""
        parts = [self._specials.defuse(part.text) if isinstance(part, TextPart) else None for part in message.parts]
        texts = [text for text in parts if text is not None]
        if len(texts) == len(parts):
            return "".join(texts)
        return [{"type": "image"} if text is None else {"type": "text", "text": text} for text in parts]

    def _pieces(self, rendered: str, pictures: Sequence[Picture]) -> Iterable[_Tokens]:
        image_token_id = self._checkpoint.image_token_id
        placed = 0
        for run, special in self._specials.split(rendered):
            if run:
                yield _Tokens(self.tokenizer.encode(run, add_special_tokens=False).ids)
            if special == image_token_id:
                if placed < len(pictures):
                    yield _Tokens([special] * pictures[placed].rows, picture=placed)
                placed += 1
            elif special is not None:
                yield _Tokens((special,), special=True)
        if placed != len(pictures):
            raise InvalidField(
                f"the model's chat template made room for {placed} pictures where {len(pictures)} were sent: "
                "put the pictures into user messages",
                param="messages",
            )


def _check(messages: Sequence[Message], limits: Limits) -> None:
    if not messages:
        raise InvalidField("there are no messages: send at least one user message", param="messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    pictures = sum(isinstance(part, ImagePart) for message in messages for part in message.parts)
    if pictures > limits.max_pictures:
        raise TooManyPictures(
            f"the request carries {pictures} pictures, but at most {limits.max_pictures} are allowed: "
            "ask about fewer at a time",
            param="messages",
        )


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


def _system_tokens(pieces: Sequence[_Tokens], roles: Sequence[str], openings: int) -> int:
    """How many tokens come before the first turn that is not the system's, a default one of the template included.

    Turns are told by the special token that opens the first of them. 0 where the template has no such token.
    """
    opening = next((piece.ids for piece in pieces if piece.special and piece.picture is None), None)
    starts: list[int] = []
    at = 0
    for piece in pieces:
        if piece.special and piece.ids == opening:
            starts.append(at)
        at += len(piece.ids)
    given = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    by_template = len(starts) - len(roles) - openings
    system = given + by_template
    return starts[system] if by_template in (0, 1) and system < len(starts) else 0


def _assembled(pieces: Iterable[_Tokens], length: int, pictures: tuple[Picture, ...], system_tokens: int) -> Prompt:
    token_ids: IntArray = np.empty(length, dtype=np.int64)
    ranges = []
    at = 0
    for piece in pieces:
        end = at + len(piece.ids)
        token_ids[at:end] = piece.ids
        if piece.picture is not None:
            ranges.append(PictureRange(at, end, piece.picture))
        at = end
    token_ids.setflags(write=False)
    return Prompt(token_ids, pictures, tuple(ranges), system_tokens)


def _named_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """``bos_token`` and the like, which templates may use, from ``tokenizer_config.json``."""
    settings = read_json(checkpoint.path / "tokenizer_config.json", missing_ok=True)
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found
