from __future__ import annotations

import json
import logging

import httpx
import pytest
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from mmserve import errors
from mmserve.errors import MMServeError, from_wire
from web.app import create_app
from web.errors import error_response, explain, field_path, status_of
from web.service import Service

pytestmark = pytest.mark.anyio


def tree(root: type[MMServeError] = MMServeError) -> list[type[MMServeError]]:
    return [root, *(cls for child in root.__subclasses__() for cls in tree(child))]


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (errors.InvalidField, 400),
        (errors.PromptTooLong, 400),
        (errors.ModelNotFound, 404),
        (errors.UnsupportedPicture, 400),
        (errors.CorruptPicture, 400),
        (errors.PictureTooLarge, 413),
        (errors.TooManyPictures, 400),
        (errors.RequestCancelled, 499),
        (errors.QueueFull, 429),
        (errors.EngineUnavailable, 503),
        (errors.CheckpointError, 500),
        (MMServeError, 500),
    ],
)
def test_status(cls: type[MMServeError], status: int) -> None:
    assert status_of(cls("x")) == status


def test_the_callers_faults_are_4xx_and_the_others_are_not_400() -> None:
    for cls in tree():
        assert (400 <= status_of(cls("x")) < 500) == (
            issubclass(cls, errors.RequestError | errors.QueueFull | errors.RequestCancelled)
        )


def test_every_error_survives_the_wire() -> None:
    for cls in tree():
        response = error_response(cls("what to do", param="image"))
        wire = json.loads(bytes(response.body))["error"]
        back = from_wire(wire)
        assert type(back) is cls
        assert (back.message, back.param) == ("what to do", "image")


@pytest.mark.parametrize("error", [errors.QueueFull("x"), errors.EngineUnavailable("x")])
def test_errors_worth_another_try_say_when(error: MMServeError) -> None:
    assert int(error_response(error).headers["retry-after"]) > 0


def test_field_path() -> None:
    assert field_path(("messages", 0, "content", 2, "type")) == "messages[0].content[2].type"
    assert field_path(()) == ""


def test_explanations_are_sentences_without_the_callers_values() -> None:
    class Model(BaseModel):
        number: int
        words: list[str] = []

    def of(**values: object) -> MMServeError:
        with pytest.raises(ValidationError) as caught:
            Model.model_validate(values)
        return explain(caught.value.errors())

    assert of().message == "number is missing; it is required"
    wrong = of(number="secret")
    assert wrong.message.startswith("number should be a valid integer")
    assert wrong.param == "number"
    assert "secret" not in wrong.message
    assert of(number=1, words=[1]).param == "words[0]"


async def test_unknown_route_and_method(client: httpx.AsyncClient) -> None:
    response = await client.get("/v2/none")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"
    assert "/v2/none" in response.json()["error"]["message"]
    response = await client.get("/v1/vqa")
    assert response.status_code == 405
    assert "POST" in response.json()["error"]["message"]
    assert response.headers["allow"] == "POST"


async def test_fault_of_ours_is_500_hidden_and_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(service)

    @app.get("/fault")
    async def fault() -> Response:
        raise KeyError("secret")

    @app.get("/checked")
    async def checked(number: int) -> int:
        return number

    caplog.set_level(logging.ERROR)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/fault")
        assert response.status_code == 500
        assert "secret" not in response.text
        identity = response.headers["x-request-id"]
        assert identity in response.json()["error"]["message"]
        assert identity in caplog.text
        assert "secret" in caplog.text
        response = await client.get("/checked", params={"number": "x"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "number"


async def test_every_response_has_its_own_request_id(client: httpx.AsyncClient) -> None:
    ids = {(await client.get(path)).headers["x-request-id"] for path in ("/health", "/health", "/none", "/")}
    assert len(ids) == 4
