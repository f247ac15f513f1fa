"""Messages with pictures to a ``Prompt``: chat template, tokens, placeholders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from mmserve.checkpoint import Checkpoint, read_json
from mmserve.config import Limits
from mmserve.errors import (
    CheckpointError,
    InvalidField,
    PictureError,
    PromptTooLong,
    TooManyPictures,
    UnsupportedPicture,
)
from mmserve.prompt.detokenizer import Detokenizer, TokenTable, load_tokenizer
from mmserve.prompt.layout import Layout, Rows, Segment
from mmserve.prompt.layouts import layout_for
from mmserve.prompt.pieces import Piece, assembled, expanded_pieces, rows_piece, system_tokens
from mmserve.prompt.specials import SpecialTokens
from mmserve.prompt.template import ChatTemplate
from mmserve.prompt.text import TextEncoder
from mmserve.types import Detail, ImagePart, Message, Picture, Prompt, TextPart
from vision.decode import decoder_id
from vision.geometry import Geometry
from vision.identity import fingerprint
from vision.picture import read_picture

ROLES = ("system", "user", "assistant")

DEFAULT_DETAIL = Detail()

_MAX_NFC_SHRINKAGE = 4
"""Normalisation to NFC, which tokenizers may do, leaves at least a quarter of a text's UTF-8 bytes."""


class PromptBuilder:
    """Builds prompts for one model. Keeps nothing between calls, so several threads may share it."""

    def __init__(self, checkpoint: Checkpoint, limits: Limits, layout: Layout | None = None) -> None:
        """Reads tokenizer and chat template; ``layout`` is that of the checkpoint's family, unless another is given.

        Raises ``CheckpointError`` and ``ConfigError``.
        """
        self._checkpoint = checkpoint
        self._limits = limits
        self.tokenizer = load_tokenizer(checkpoint.tokenizer_path)
        self.tokenizer.encode_special_tokens = True  # what is encoded here is text; specials come from the template
        self._text = TextEncoder(self.tokenizer)
        self._layout = layout or layout_for(checkpoint)
        if self._layout.most_pictures is not None:
            most = min(limits.max_pictures, self._layout.most_pictures)
            self._limits = dataclasses.replace(limits, max_pictures=most)
        self._specials = SpecialTokens(self.tokenizer.get_added_tokens_decoder(), mark=self._layout.mark)
        self._template = ChatTemplate(checkpoint.template or self._layout.template or "", _named_tokens(checkpoint))
        self.geometry = self._layout.geometry
        self._fingerprints = {
            geometry: self._fingerprint(geometry) for geometry in (self.geometry, self._layout.among_others) if geometry
        }
        vocabulary = self.tokenizer.get_vocab()
        self._longest_token = max(map(len, vocabulary))
        self._vocabulary = max(vocabulary.values()) + 1
        self._table = TokenTable(self.tokenizer)
        self._mark = self._specials.ids.get(self._layout.mark or "", self._layout.pad_id) if self.geometry else None
        if self._mark is not None and self._mark not in self._specials.ids.values():
            raise CheckpointError(f"image_token_id {self._mark} is no special token of the tokenizer")

    def build(self, messages: Sequence[Message], *, cache_salt: str = "", add_generation_prompt: bool = True) -> Prompt:
        """The prompt of a conversation. Pictures are hashed and measured, not decoded.

        Callers' text never becomes a special token, and the k-th placeholder that the template writes stands for
        the k-th picture. ``cache_salt`` keeps tenants' pictures apart in every cache.

        Raises ``InvalidField`` (roles, empty or undecodable text, what the template refuses), ``TooManyPictures``,
        ``PictureError`` and ``PromptTooLong`` (which leaves at least one token for the answer); ``param`` says where.
        """
        _check(messages, self._limits)
        self._refuse_hopeless(_text_size(messages))
        pictures = self._pictures(messages, cache_salt)
        inputs = [{"role": message.role, "content": self._content(message)} for message in messages]
        rendered = self._template.render(inputs, add_generation_prompt=add_generation_prompt)
        pieces = list(self._pieces(rendered, pictures))
        opening = self._text.opening if self._layout.opens else ()
        if opening and tuple(pieces[0].ids[: len(opening)]) != opening:
            pieces.insert(0, Piece(opening, special=True))
        length = sum(len(piece.ids) for piece in pieces)
        if length >= self._checkpoint.max_model_len:
            raise self._too_long(f"{length:,}")
        system = system_tokens(pieces, [message.role for message in messages], int(add_generation_prompt))
        return assembled(pieces, length, pictures, system_tokens=system, opens_answer=add_generation_prompt)

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
        if len(pictures) > self._limits.max_pictures:
            raise _too_many(len(pictures), self._limits, "images")
        read = tuple(
            self._picture_at(data, cache_salt, f"images[{k}]", len(pictures)) for k, data in enumerate(pictures)
        )
        pieces = expanded_pieces(ids, self._layout, read) if read else [Piece(ids)]
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
        for segment in self._layout.expand(picture):
            if isinstance(segment, Rows):
                yield rows_piece(self._layout, segment, number)
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

    def _fingerprint(self, geometry: Geometry) -> bytes:
        checkpoint = self._checkpoint
        return fingerprint(
            weights=checkpoint.fingerprint,
            vision_config=checkpoint.vision_config,
            processor=checkpoint.processor,
            geometry=geometry,
            decoder=decoder_id(),
        )

    def _pictures(self, messages: Sequence[Message], cache_salt: str) -> tuple[Picture, ...]:
        found = [
            (part, f"messages[{m}].content[{p}]")
            for m, message in enumerate(messages)
            for p, part in enumerate(message.parts)
            if isinstance(part, ImagePart)
        ]
        return tuple(self._picture_at(part.data, cache_salt, where, len(found), part.detail) for part, where in found)

    def _picture_at(
        self, data: bytes, cache_salt: str, where: str, among: int, detail: Detail = DEFAULT_DETAIL
    ) -> Picture:
        try:
            geometry = self._layout.geometry_among(among, detail)
        except InvalidField as error:
            raise InvalidField(error.message, param=f"{where}.{error.param}") from None
        if geometry is None:
            raise UnsupportedPicture(
                f"{self._checkpoint.name} reads text only: leave the picture out, or ask a model that sees", param=where
            )
        try:
            return read_picture(
                data,
                geometry=geometry,
                fingerprint=self._fingerprints.get(geometry) or self._fingerprint(geometry),
                limits=self._limits,
                cache_salt=cache_salt,
                detail=detail,
            )
        except PictureError as error:
            raise type(error)(error.message, param=where) from error.__cause__

    def _content(self, message: Message) -> str | list[dict[str, Any]]:
        """A message's content in Hugging Face's form: a plain string if it is only text and the template takes it."""
        parts = [self._specials.defuse(part.text) if isinstance(part, TextPart) else None for part in message.parts]
        texts = [text for text in parts if text is not None]
        if len(texts) == len(parts) and self._template.takes_strings:
            return "".join(texts)
        return [{"type": "image"} if text is None else {"type": "text", "text": text} for text in parts]

    def _pieces(self, rendered: str, pictures: Sequence[Picture]) -> Iterator[Piece]:
        """The rendered conversation, cut where special tokens and pictures stand; text that pictures bring with them is
        encoded together with its neighbours'."""
        placed, text, first = 0, "", True
        for run, special in self._specials.split(rendered):
            text += run
            segments: Sequence[Segment] = () if special is None else (special,)
            if special is not None and special == self._mark:
                segments = self._layout.expand(pictures[placed]) if placed < len(pictures) else ()
                placed += 1
            for segment in segments:
                if isinstance(segment, str):
                    text += segment
                    continue
                if text:
                    yield Piece(self._text.encode(text, first=first))
                text, first = "", self._layout.apart and isinstance(segment, Rows)
                if isinstance(segment, Rows):
                    yield rows_piece(self._layout, segment, placed - 1)
                else:
                    yield Piece((segment,), special=True)
        if text:
            yield Piece(self._text.encode(text, first=first))
        if placed != len(pictures):
            raise InvalidField(
                f"the model's chat template made room for {placed} pictures where {len(pictures)} were sent: "
                "put the pictures into user messages",
                param="messages",
            )


def _text_size(messages: Sequence[Message]) -> int:
    """In characters."""
    return sum(len(part.text) for message in messages for part in message.parts if isinstance(part, TextPart))


def _too_many(pictures: int, limits: Limits, where: str) -> TooManyPictures:
    return TooManyPictures(
        f"the request carries {pictures} pictures, but at most {limits.max_pictures} are allowed: "
        "ask about fewer at a time",
        param=where,
    )


def _check(messages: Sequence[Message], limits: Limits) -> None:
    if not messages:
        raise InvalidField("there are no messages: send at least one user message", param="messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    pictures = sum(isinstance(part, ImagePart) for message in messages for part in message.parts)
    if pictures > limits.max_pictures:
        raise _too_many(pictures, limits, "messages")


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
