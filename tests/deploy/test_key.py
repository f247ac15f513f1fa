from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserve.deploy.key import PREFIX_CHARACTERS, name_key, picture_key, routing_key

CAT, DOG = b"\x89PNG a cat", b"\x89PNG a dog"


def form(*files: tuple[str, tuple[str, bytes]], **fields: str) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://test", files=list(files) or {"none": ("", b"")}, data=fields)
    request.read()
    return request.headers["content-type"], request.content


def document(**fields: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(fields).encode()


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def chat(*parts: Any, system: str = "Be brief.") -> tuple[str, bytes]:
    return document(messages=[{"role": "system", "content": system}, {"role": "user", "content": list(parts)}])


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri(data)}}


SAME = {
    "form": form(("image", ("a.png", CAT)), question="What is it?"),
    "form, question first": form(("image", ("b.jpg", CAT)), ("image", ("c.png", DOG)), question="Which?"),
    "chat": chat({"type": "text", "text": "What is it?"}, image(CAT), image(DOG)),
    "chat, short": chat({"type": "image_url", "image_url": uri(CAT)}),
    "responses": document(input=[{"role": "user", "content": [{"type": "input_image", "image_url": uri(CAT)}]}]),
    "native": document(text="<image>What?", image_data=uri(CAT)),
    "native, many": document(text=["<image>What?"], image_data=[[uri(CAT), uri(DOG)]]),
    "decisions": document(images=[{"url": uri(CAT)}], question="Which?"),
    "captions": form(("image", ("1.png", CAT)), ("image", ("2.png", DOG))),
}


@pytest.mark.parametrize("request_", SAME.values(), ids=SAME)
def test_a_picture_has_one_key_whatever_route_it_comes_by(request_: tuple[str, bytes]) -> None:
    assert routing_key(*request_) == picture_key(CAT) != picture_key(DOG)


def test_a_picture_that_was_sent_once_has_the_key_it_was_sent_under() -> None:
    known = {"pic-1": picture_key(CAT)}
    boundary = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\npic-1\r\n--b--\r\n'
    assert routing_key("multipart/form-data; boundary=b", boundary, known.get) == picture_key(CAT)
    by_id = document(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "pic-1"}}]}])
    assert routing_key(*by_id, known.get) == picture_key(CAT)
    assert routing_key(*by_id) == name_key("pic-1")


def test_a_response_that_goes_on_has_the_key_of_the_one_before() -> None:
    going_on = document(input="And then?", previous_response_id="resp_1")
    assert routing_key(*going_on, {"resp_1": b"key"}.get) == b"key"
    assert routing_key(*going_on) == name_key("resp_1")


def test_a_conversation_keeps_its_key_from_turn_to_turn() -> None:
    system, first = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who was Ada?"}
    more = [{"role": "assistant", "content": "A mathematician."}, {"role": "user", "content": "When?"}]
    key = routing_key(*document(messages=[system, first]))
    assert key == routing_key(*document(messages=[system, first, *more], temperature=0.5))
    assert key != routing_key(*document(messages=[system, {"role": "user", "content": "Who was Alan?"}]))
    assert key != routing_key(*document(messages=[{"role": "system", "content": "Be long."}, first]))


def test_texts_that_begin_alike_have_one_key() -> None:
    shared = "A long document. " * PREFIX_CHARACTERS
    for name in ("prompt", "text", "input"):
        assert routing_key(*document(**{name: shared + "Who?"})) == routing_key(*document(**{name: shared + "When?"}))
        assert routing_key(*document(**{name: "Who?"})) != routing_key(*document(**{name: "When?"}))
    ids = list(range(5000))
    assert routing_key(*document(input_ids=[*ids, 1])) == routing_key(*document(input_ids=[*ids, 2]))


def test_settings_are_no_part_of_the_key() -> None:
    assert routing_key(*document(prompt="Who?", max_tokens=1)) == routing_key(*document(max_tokens=2, prompt="Who?"))


def test_a_picture_at_an_address_is_keyed_by_it() -> None:
    there = "https://example.org/cat.png"
    assert routing_key(*chat({"type": "image_url", "image_url": {"url": there}})) == name_key(there)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b"[" * 100_000),
        ("application/json", b'{"messages": [1, null, {"role": 3, "content": [4, {"text": 5}]}]}'),
        ("application/json", b'{"image_url": {"url": {"url": 3}}, "prompt": "\\ud800"}'),
        ("application/json", b'{"image_url": "data:image/png;base64,!!!"}'),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Dispo"),
        ("multipart/form-data; boundary=b", b"nothing of the kind"),
        ("multipart/form-data", b"--b"),
        ("", b"\xff\xfe"),
    ],
)
def test_a_bad_body_has_a_key_all_the_same(kind: str, body: bytes) -> None:
    assert routing_key(kind, body) == routing_key(kind, body)


@given(
    st.text(st.characters(max_codepoint=255), max_size=20) | st.just("multipart/form-data; boundary=b"),
    st.binary(max_size=200),
)
def test_no_body_raises(kind: str, body: bytes) -> None:
    assert isinstance(routing_key(kind, body), bytes)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["messages", "image_url", "url", "content", "text", "input", "role"]), inner)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_no_document_raises(value: Any) -> None:
    assert isinstance(routing_key("application/json", json.dumps(value).encode()), bytes)


def test_no_body_no_key() -> None:
    assert routing_key("", b"") == b""
    assert routing_key("application/json", b"{}") == b""
