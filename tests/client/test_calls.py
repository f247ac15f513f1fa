"""What the clients send, and what they make of complete replies."""

from __future__ import annotations

import base64
import inspect
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

import mmserve.errors as errors
from mmserve import Answer, AsyncClient, Client
from mmserve.client import PictureInfo, Timing
from mmserve.client.calls import Looking, Options, Watching
from mmserve.sampling import SamplingParams
from mmserve.types import Usage
from tests.client.harness import CHAT, VQA, Both, Handler, fields, form_parts

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00\x01\xff\r\n--x"
JPEG = b"\xff\xd8\xff\xe0 jpeg"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def recording(reply: object, seen: list[httpx.Request], status: int = 200) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, json=reply)

    return handler


class TestAsk:
    def test_sends_a_form_and_reads_the_answer(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "cat.png"
        path.write_bytes(PNG)
        seen: list[httpx.Request] = []
        answer = Both(kind, recording(VQA, seen)).call("ask", path, "What is this?")
        [request] = seen
        assert (request.method, str(request.url)) == ("POST", "http://127.0.0.1:8000/v1/vqa")
        assert request.headers["user-agent"] == f"mmserve/{__import__('mmserve').__version__}"
        assert "authorization" not in request.headers
        [picture] = [part for part in form_parts(request) if part.filename is not None]
        assert (picture.name, picture.filename, picture.media_type, picture.value) == (
            "image",
            "cat.png",
            "image/png",
            PNG,
        )
        assert fields(request) == {"question": ["What is this?"]}
        assert answer == Answer(
            text="A cat.",
            finish_reason="stop",
            usage=Usage(90, 3, 80, 64, 1, 9, 9),
            model="pocket-vl",
            id="vqa-1",
            created=1700000000,
            timing=Timing(0.25, 0.5),
            pictures=(PictureInfo(640, 480, 64, (644, 476)),),
        )
        assert str(answer) == f"{answer}" == "A cat."

    def test_several_pictures_keep_their_order(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        Both(kind, recording(VQA, seen)).call("ask", [JPEG, PNG, JPEG], "Which is the odd one?")
        assert [part.value for part in form_parts(seen[0]) if part.name == "image"] == [JPEG, PNG, JPEG]

    def test_every_option_has_its_field_and_none_is_left_out(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        Both(kind, recording(VQA, seen)).call(
            "ask",
            JPEG,
            "q",
            system="Be brief.",
            model="pocket-vl",
            max_tokens=7,
            min_tokens=2,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.05,
            repetition_penalty=1.1,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            seed=2**63,
            stop=["\n", "。"],
            ignore_eos=False,
            skip_special_tokens=False,
            logprobs=True,
            top_logprobs=3,
            cache_salt="tenant ä",
            detail="low",
            min_pixels=784,
            max_pixels=7840,
            video=JPEG,
            fps=0.5,
            num_frames=3,
            max_frames=4,
        )
        sent = fields(seen[0])
        assert sent == {
            "question": ["q"],
            "fps": ["0.5"],
            "num_frames": ["3"],
            "max_frames": ["4"],
            "system": ["Be brief."],
            "model": ["pocket-vl"],
            "max_tokens": ["7"],
            "min_tokens": ["2"],
            "temperature": ["0.5"],
            "top_p": ["0.9"],
            "top_k": ["40"],
            "min_p": ["0.05"],
            "repetition_penalty": ["1.1"],
            "presence_penalty": ["-0.5"],
            "frequency_penalty": ["0.25"],
            "seed": ["9223372036854775808"],
            "stop": ["\n", "。"],
            "ignore_eos": ["false"],
            "skip_special_tokens": ["false"],
            "logprobs": ["true"],
            "top_logprobs": ["3"],
            "cache_salt": ["tenant ä"],
            "detail": ["low"],
            "min_pixels": ["784"],
            "max_pixels": ["7840"],
        }
        assert sent.keys() - {"question", "system", "model"} == Options.__annotations__.keys() - {"video"}

    def test_none_means_not_said(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        nothing: Any = dict.fromkeys(Options.__annotations__)
        Both(kind, recording(VQA, seen)).call("ask", JPEG, "q", system=None, model=None, **nothing)
        assert fields(seen[0]) == {"question": ["q"]}

    def test_zero_and_empty_are_said(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        Both(kind, recording(VQA, seen)).call("ask", JPEG, "", system="", temperature=0.0, seed=0, stop="a")
        assert fields(seen[0]) == {
            "question": [""],
            "system": [""],
            "temperature": ["0.0"],
            "seed": ["0"],
            "stop": ["a"],
        }

    def test_a_misspelt_option_is_a_type_error_and_nothing_is_sent(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        with pytest.raises(TypeError, match=r"'max_token' is not an option; there are: .*max_tokens"):
            Both(kind, recording(VQA, seen)).call("ask", JPEG, "q", max_token=3)
        assert not seen

    @pytest.mark.parametrize("pictures", ["missing.jpg", ["missing.jpg"], Path("missing.jpg")])
    def test_a_missing_file_is_found_out_before_anything_is_sent(self, kind: str, pictures: Any) -> None:
        seen: list[httpx.Request] = []
        with pytest.raises(FileNotFoundError):
            Both(kind, recording(VQA, seen)).call("ask", pictures, "q")
        assert not seen

    def test_no_picture_is_refused_here(self, kind: str) -> None:
        with pytest.raises(errors.InvalidField, match="at least one picture") as caught:
            Both(kind, recording(VQA, [])).call("ask", [], "q")
        assert caught.value.param == "image"

    def test_logprobs_are_as_sent(self, kind: str) -> None:
        logprobs = {"content": [{"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": []}]}
        answer = Both(kind, recording({**VQA, "logprobs": logprobs}, [])).call("ask", JPEG, "q", logprobs=True)
        assert answer.logprobs == logprobs

    @pytest.mark.parametrize(
        "reply",
        [
            b"<html>hello</html>",
            b"",
            b"[]",
            b"null",
            b"{}",
            b'{"answer": 3}',
            json.dumps({**VQA, "usage": None}).encode(),
        ],
    )
    def test_a_reply_that_is_no_answer(self, kind: str, reply: bytes) -> None:
        with pytest.raises(errors.MMServeError, match=r"http://127.0.0.1:8000/v1/vqa .* is base_url an mmserve server"):
            Both(kind, lambda _: httpx.Response(200, content=reply)).call("ask", JPEG, "q")


def test_options_are_the_engines_sampling_fields() -> None:
    ours = (
        set(Options.__annotations__)
        - {"top_logprobs", "cache_salt"}
        - set(Looking.__annotations__)
        - set(Watching.__annotations__)
    )
    assert ours == set(SamplingParams.__dataclass_fields__) - {"stop_token_ids", "logit_bias"}


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    renamed = {"aclose": "close"}

    def surface(cls: type) -> dict[str, list[tuple[str, Any]]]:
        return {
            renamed.get(name, name): [(p.name, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(cls, inspect.isfunction)
            if not name.startswith("_")
        }

    assert surface(Client) == surface(AsyncClient)
    ours, theirs = (inspect.signature(cls).parameters for cls in (Client, AsyncClient))
    assert list(ours) == list(theirs)


class TestSettings:
    def test_api_key_and_base_url_with_a_path(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        settings = {"base_url": "https://vlm.example/under/here/", "api_key": "s3cret"}
        Both(kind, recording(VQA, seen), settings).call("ask", JPEG, "q")
        assert str(seen[0].url) == "https://vlm.example/under/here/v1/vqa"
        assert seen[0].headers["authorization"] == "Bearer s3cret"

    @pytest.mark.parametrize("url", ["http://h:9", "http://h:9/", "http://h:9/v1", "http://h:9/v1/"])
    def test_base_url_may_end_as_openai_clients_want_it(self, kind: str, url: str) -> None:
        seen: list[httpx.Request] = []
        Both(kind, recording({"data": []}, seen), {"base_url": url}).call("models")
        assert str(seen[0].url) == "http://h:9/v1/models"

    @pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://h", "http://", "http://[::1", "localhost:8000"])
    @pytest.mark.parametrize("client", [Client, AsyncClient])
    def test_a_bad_base_url_is_refused_at_once(self, client: Any, url: str) -> None:
        with pytest.raises(errors.ConfigError):
            client(url)

    @pytest.mark.parametrize(
        ("url", "proxied"),
        [
            ("http://127.0.0.1:8000", False),
            ("http://localhost:8000", False),
            ("http://[::1]:8000", False),
            ("http://10.0.0.5:8000", True),
            ("http://vlm.example", True),
        ],
    )
    def test_proxies_of_the_environment_are_for_other_machines(
        self, url: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
        monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
        with Client(url) as client:
            assert any(transport is not None for transport in client._http._mounts.values()) is proxied

    def test_timeouts(self) -> None:
        with Client(timeout=42) as client, Client(timeout=2) as short:
            assert client._http.timeout == httpx.Timeout(42, connect=10, pool=None)
            assert short._http.timeout == httpx.Timeout(2, connect=2, pool=None)


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "raised"),
        [
            (400, errors.InvalidField),
            (400, errors.PromptTooLong),
            (404, errors.ModelNotFound),
            (400, errors.UnsupportedPicture),
            (400, errors.CorruptPicture),
            (413, errors.PictureTooLarge),
            (400, errors.TooManyPictures),
            (429, errors.QueueFull),
            (499, errors.RequestCancelled),
            (503, errors.EngineUnavailable),
            (500, errors.MMServeError),
        ],
    )
    def test_our_errors_come_back_as_themselves(
        self, kind: str, status: int, raised: type[errors.MMServeError]
    ) -> None:
        wire = raised("what to do", param="image").to_wire()
        both = Both(kind, recording({"error": wire}, [], status), {"retries": 0})
        with pytest.raises(errors.MMServeError) as caught:
            both.call("ask", JPEG, "q")
        assert type(caught.value) is raised
        assert (caught.value.message, caught.value.param) == ("what to do", "image")

    @pytest.mark.parametrize(
        ("status", "raised"),
        [
            (301, errors.RequestError),
            (400, errors.RequestError),
            (401, errors.RequestError),
            (404, errors.RequestError),
            (413, errors.PictureTooLarge),
            (422, errors.RequestError),
            (429, errors.QueueFull),
            (499, errors.RequestCancelled),
            (500, errors.MMServeError),
            (502, errors.EngineUnavailable),
            (503, errors.EngineUnavailable),
            (504, errors.EngineUnavailable),
        ],
    )
    @pytest.mark.parametrize(
        "body", [b"", b"<h1>nginx\n</h1>", b'{"detail": "no"}', b'{"error": "no"}', b"[1]", b"\xff\xfe"]
    )
    def test_anybody_elses_errors_go_by_their_status(
        self, kind: str, status: int, raised: type[errors.MMServeError], body: bytes
    ) -> None:
        both = Both(kind, lambda _: httpx.Response(status, content=body), {"retries": 0})
        with pytest.raises(errors.MMServeError) as caught:
            both.call("ask", JPEG, "q")
        assert type(caught.value) is raised
        assert f"/v1/vqa replied {status}" in caught.value.message
        if body == b"<h1>nginx\n</h1>":
            assert caught.value.message.endswith(": <h1>nginx </h1>")

    @pytest.mark.parametrize("code", [None, 404, "model_overloaded"])
    def test_an_openai_error_of_another_server_keeps_its_message(self, kind: str, code: object) -> None:
        wire = {"error": {"message": "no such thing", "type": "NotFound", "param": None, "code": code}}
        with pytest.raises(errors.RequestError) as caught:
            Both(kind, recording(wire, [], 404)).call("ask", JPEG, "q")
        assert type(caught.value) is errors.RequestError
        assert (caught.value.message, caught.value.param) == ("no such thing", None)

    def test_a_long_foreign_body_is_cut(self, kind: str) -> None:
        with pytest.raises(errors.RequestError) as caught:
            Both(kind, lambda _: httpx.Response(400, content=b"x" * 10_000)).call("ask", JPEG, "q")
        assert len(caught.value.message) < 400


class TestChat:
    def test_messages_mix_text_and_pictures(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "cat.jpg"
        path.write_bytes(JPEG)
        seen: list[httpx.Request] = []
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [path, "What is this?", PNG]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": path},
            {"role": "user", "content": [{"type": "text", "text": "as it is"}]},
        ]
        answer = Both(kind, recording(CHAT, seen)).call("chat", messages, model="m", max_tokens=5, stop=("x",))
        assert (seen[0].method, seen[0].url.path) == ("POST", "/v1/chat/completions")

        def uri(data: bytes, media_type: str) -> dict[str, Any]:
            return {
                "type": "image_url",
                "image_url": {"url": f"data:{media_type};base64,{base64.b64encode(data).decode()}"},
            }

        assert json.loads(seen[0].content) == {
            "model": "m",
            "max_tokens": 5,
            "stop": ["x"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        uri(JPEG, "image/jpeg"),
                        {"type": "text", "text": "What is this?"},
                        uri(PNG, "image/png"),
                    ],
                },
                {"role": "assistant", "content": "A cat."},
                {"role": "user", "content": [uri(JPEG, "image/jpeg")]},
                {"role": "user", "content": [{"type": "text", "text": "as it is"}]},
            ],
        }
        assert (answer.text, answer.finish_reason, answer.id) == ("A cat.", "stop", "chatcmpl-1")
        assert answer.usage == Usage(90, 3, 80, 64, 1, 9, 9)
        assert answer.timing is None

    def test_usage_of_other_servers_lacks_our_details(self, kind: str) -> None:
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}
        answer = Both(kind, recording({**CHAT, "usage": usage}, [])).call("chat", [])
        assert answer.usage == Usage(5, 2, 0, 0)

    def test_a_message_without_content_is_for_the_server_to_judge(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        Both(kind, recording(CHAT, seen)).call("chat", [{"role": "user"}, {"role": "user", "content": None}])
        assert json.loads(seen[0].content)["messages"] == [{"role": "user"}, {"role": "user", "content": None}]

    def test_no_choice_is_no_answer(self, kind: str) -> None:
        with pytest.raises(errors.MMServeError, match="is base_url an mmserve server"):
            Both(kind, recording({**CHAT, "choices": []}, [])).call("chat", [])


class TestSmallCalls:
    def test_models(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        reply = {"object": "list", "data": [{"id": "a", "object": "model"}, {"id": "b"}]}
        assert Both(kind, recording(reply, seen)).call("models") == ["a", "b"]
        assert (seen[0].method, seen[0].url.path) == ("GET", "/v1/models")

    def test_health(self, kind: str) -> None:
        assert Both(kind, lambda _: httpx.Response(200, json={"status": "ok"})).call("health") == {"status": "ok"}
        assert Both(kind, lambda _: httpx.Response(200)).call("health") == {}

    def test_ill_health_is_told_at_once(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        with pytest.raises(errors.EngineUnavailable):
            Both(kind, recording({"status": "unavailable"}, seen, 503)).call("health")
        assert len(seen) == 1

    def test_caption(self, kind: str) -> None:
        seen: list[httpx.Request] = []
        both = Both(kind, recording(VQA, seen))
        assert both.call("caption", JPEG).text == "A cat."
        both.call("caption", JPEG, prompt="Say it.", model="m", max_tokens=9)
        assert fields(seen[0]) == {"question": ["Describe this picture in one sentence."]}
        assert fields(seen[1]) == {"question": ["Say it."], "model": ["m"], "max_tokens": ["9"]}
