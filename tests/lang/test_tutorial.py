"""The tutorial's programs, word for word but for the import's name, the model and the server's address."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

import mmserve as sgl
from mmserve.lang.calls import Backend, GenerateCall, ScoreCall, Scores
from mmserve.lang.default import default_backend
from mmserve.types import TokenEvent
from tests.lang.blocks import Block, blocks_of
from tests.lang.conftest import EXAMPLES

BLOCKS = blocks_of(Path(__file__).parent.parent / "data" / "tutorial_blocks.md")
CLIENT, PERSON, EMAIL_AND_PHONE, BRANCHES, PARALLEL, RESUME, PICTURE, ROUTES = BLOCKS
QUESTIONS = ["什么是SGLang？", "什么是vLLM？", "什么是DeepSpeed？"]


class Forcing:
    """A backend that finds ``category`` likeliest, whatever the model thinks."""

    def __init__(self, backend: Backend, category: str) -> None:
        self._backend = backend
        self._category = category
        self.generate = backend.generate

    generate: Any

    async def score(self, call: ScoreCall) -> Scores:
        found = await self._backend.score(call)
        return Scores(tuple(0.0 if choice == self._category else -9.0 for choice in call.choices), found.usage)

    def close(self) -> None:
        """The backend is not its own."""


class Notebook:
    """The blocks' common namespace. What the text leaves out is here: ``questions`` and ``screenshot.png``."""

    def __init__(self, url: str) -> None:
        self.names: dict[str, Any] = {"__name__": "tutorial", "questions": QUESTIONS}
        self._replaced = {
            "import sglang as sgl": "import mmserve as sgl",
            "Qwen/Qwen2-7B-Instruct": "pocket-vl",
            "http://localhost:30000": url,
        }

    def run(self, block: Block) -> dict[str, Any]:
        self.names["sgl"] = sgl  # what an earlier block has imported
        block.run(self.names, self._replaced)
        return self.names


@pytest.fixture
def notebook(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    shutil.copy(EXAMPLES / "red-circle.png", tmp_path / "screenshot.png")
    monkeypatch.chdir(tmp_path)
    return Notebook(server)


@pytest.fixture(params=["in process", "over HTTP"])
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.getfixturevalue("engine" if request.param == "in process" else "endpoint")
    sgl.set_default_backend(chosen)
    return chosen


def test_every_block_is_here() -> None:
    assert [block.source.count("@sgl.function") for block in BLOCKS] == [1, 1, 2, 1, 1, 1, 1, 0]


def test_connecting_loading_and_asking(notebook: Notebook, capsys: pytest.CaptureFixture[str], server: str) -> None:
    names = notebook.run(CLIENT)
    loaded = default_backend()
    try:
        assert isinstance(loaded, sgl.Engine)
        assert capsys.readouterr().out.strip() == names["result"]["answer"] != ""
        with sgl.RuntimeEndpoint(server) as endpoint:
            over_http = names["simple_chat"].run(question="什么是SGLang？", backend=endpoint)
            assert over_http["answer"] == names["result"]["answer"]
    finally:
        loaded.close()


@pytest.mark.usefixtures("backend")
def test_a_person_is_extracted_whole(notebook: Notebook) -> None:
    names = notebook.run(PERSON)
    person = names["Person"].model_validate_json(names["result"]["person"])
    assert isinstance(person.age, int)


@pytest.mark.usefixtures("backend")
def test_addresses_and_numbers_keep_their_patterns(notebook: Notebook) -> None:
    names = notebook.run(EMAIL_AND_PHONE)
    email = names["extract_email"].run(text="联系我：zhangsan@example.com")["email"]
    assert re.fullmatch(r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}", email)
    assert re.fullmatch(r"1[3-9]\d{9}", names["result"]["phone"])


@pytest.mark.parametrize("category", ["技术问题", "账务问题", "其他"])
def test_every_branch_is_taken(
    notebook: Notebook, backend: Backend, category: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sgl.set_default_backend(Forcing(backend, category))
    if category == "其他":  # whose branch never defines the answer that the text then reads
        with pytest.raises(sgl.NoSuchVariable, match=r"nothing generates 'answer' .* there is: 'category'"):
            notebook.run(BRANCHES)
        result = notebook.names["result"]
        assert result.messages()[-1] == {"role": "assistant", "content": "您的问题已转接人工客服"}
    else:
        result = notebook.run(BRANCHES)["result"]
        assert "answer" in result
        assert result.messages()[2]["role"] == "user"
    assert f"分类：{category}" in capsys.readouterr().out
    assert result.messages()[1] == {"role": "assistant", "content": category}


@pytest.mark.usefixtures("backend")
def test_the_model_chooses_with_probabilities(notebook: Notebook) -> None:
    try:
        notebook.run(BRANCHES)
    except sgl.NoSuchVariable:
        assert notebook.names["result"]["category"] == "其他"
    probabilities = notebook.names["result"].get_meta_info("category")["probabilities"]
    assert list(probabilities) == ["技术问题", "账务问题", "其他"]
    assert sum(probabilities.values()) == pytest.approx(1.0)


@pytest.mark.usefixtures("backend")
def test_answers_in_parallel_come_back_by_name(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    names = notebook.run(PARALLEL)
    printed = capsys.readouterr().out
    for i, question in enumerate(QUESTIONS):
        assert f"Q: {question}\nA: {names['result'][f'answer_{i}']}\n" in printed
    assert names["result"].text() == "请回答以下问题："


@pytest.mark.usefixtures("backend")
def test_a_resume_is_parsed_whole(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    names = notebook.run(RESUME)
    names["Resume"].model_validate(names["resume"])
    printed = capsys.readouterr().out
    assert json.loads(printed.partition("解析结果：\n")[2]) == names["resume"]


@pytest.mark.usefixtures("backend")
def test_a_picture_is_asked_about(notebook: Notebook, capsys: pytest.CaptureFixture[str]) -> None:
    names = notebook.run(PICTURE)
    assert capsys.readouterr().out.strip() == names["result"]["answer"] != ""
    assert names["image_qa"].run(image_path="screenshot.png", question="What is this?")["answer"] == "a red circle"


def test_routes_are_what_a_router_does(notebook: Notebook, engine: sgl.Engine, endpoint: sgl.RuntimeEndpoint) -> None:
    """The text's function over two backends, and the supported form of it, go the same ways."""

    @sgl.function
    def ask(s: sgl.ProgramState, question: str) -> None:
        s += sgl.user(question) + sgl.assistant(sgl.gen("answer"))

    asked: list[str] = []

    class Noting:
        def __init__(self, name: str, backend: Backend) -> None:
            self._name, self._backend = name, backend
            self.score, self.close = backend.score, backend.close

        async def generate(self, call: GenerateCall) -> AsyncGenerator[TokenEvent, None]:
            asked.append(self._name)
            async for event in self._backend.generate(call):
                yield event

    ours, other = Noting("ours", engine), Noting("other", endpoint)
    notebook.names["sglang_generate"] = lambda **given: ask.run(backend=ours, **given)["answer"]
    notebook.names["vllm_generate"] = lambda **given: ask.run(backend=other, **given)["answer"]
    route_inference = notebook.run(ROUTES)["route_inference"]
    router = sgl.Router({"ours": ours, "other": other}, tasks={"simple_qa": "other"}, default="ours")
    for task in ("structured", "multi_turn", "simple_qa", "another"):
        asked.clear()
        assert route_inference(task, question="hello") == router.run(ask, task=task, question="hello")["answer"]
        assert asked == ["other" if task == "simple_qa" else "ours"] * 2
