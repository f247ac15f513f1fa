"""The judge in a process of its own: what never ends is ended, and nothing is fetched."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from mmserve.grammar.judge import judge
from mmserve.grammar.judging import JudgeProcess
from mmserve.grammar.spec import Choice, JsonSchema, Regex, StructuralTag, Tag


@pytest.fixture(scope="module")
def process() -> Iterator[JudgeProcess]:
    found = JudgeProcess(seconds=1.0)
    yield found
    found.close()


def test_it_says_what_the_judge_says(process: JudgeProcess) -> None:
    for constraint, text in (
        (JsonSchema.of({"type": "integer"}), "3"),
        (JsonSchema.of({"type": "integer"}), '"x"'),
        (Choice(("a", "b")), "b"),
        (Choice(("a", "b")), "c"),
    ):
        assert process(constraint, text) == judge(constraint, text)


def test_what_backtracks_for_ever_is_ended_and_the_next_is_answered(process: JudgeProcess) -> None:
    process(Choice(("a",)), "a")
    start = time.monotonic()
    assert process(Regex("(a+)+b"), "a" * 60) is None
    assert time.monotonic() - start < 10
    assert process(Choice(("a",)), "a") is True


def test_many_tags_are_ended_too(process: JudgeProcess) -> None:
    never = JsonSchema.of({"type": "integer"})
    tags = StructuralTag((Tag("<f>", never, "</f>"), Tag("<f>", Regex("[^q]*"), "</f>")), ("<f>",))
    assert process(tags, "<f>q</f>" * 2000) in (False, None)
    assert process(Choice(("a",)), "a") is True


def test_numbers_beyond_floats_are_no_crash() -> None:
    schema = JsonSchema.of({"type": "object", "properties": {"v": {"multipleOf": 0.5}}})
    assert judge(schema, '{"v": 1e999}') in (None, False)


@pytest.mark.parametrize(
    "schema",
    [
        '{"not": {"$dynamicRef": "URL/a.json"}}',
        '{"not": {"$ref": "#/x-defs/k"}, "x-defs": {"k": {"$ref": "URL/b.json"}}}',
        '{"$ref": "URL/c.json"}',
    ],
)
def test_nothing_is_fetched(schema: str) -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert judge(JsonSchema(schema.replace("URL", address)), '{"a": 1}') is None
        server.shutdown()
    assert asked == []


def test_closing_twice_is_fine() -> None:
    process = JudgeProcess()
    assert process(Choice(("a",)), "a") is True
    process.close()
    process.close()
