"""SGLang's own frontend language, run against our server: programs -> a table of what came out.

    python -m venv ENV && ENV/bin/pip install --no-deps sglang
    ENV/bin/pip install requests aiohttp numpy pillow tqdm msgspec orjson psutil pybase64 pydantic ipython
    ENV/bin/python tests/outside/sglang_frontend.py http://127.0.0.1:8000

The server must have ``pocket-vl``. Needs nothing of this project, and no torch: importing ``sglang`` patches
transformers by way of a package that wants torch, and the frontend wants neither, so that package is stood in for.
The programs at the end are SGLang's own (``sglang.test.test_programs``), those whose checks ask for no knowledge of
the world.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

COLOURS = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]
SHAPES = ["circle", "rectangle", "triangle"]
LONGEST_SECONDS = 60
GREEDY = {"temperature": 0, "max_new_tokens": 32}

Check = Callable[[], Any]
"""Runs a program; returns what to show, raises where it is not as it should be."""


def import_frontend() -> Any:
    utils = types.ModuleType("sglang.srt.utils")
    patches = types.ModuleType("sglang.srt.utils.hf_transformers_patches")
    setattr(utils, "is_hip", lambda: False)  # noqa: B010 (modules have no such attributes for mypy)
    setattr(patches, "apply_all", lambda: None)  # noqa: B010
    sys.modules |= {utils.__name__: utils, patches.__name__: patches}
    import sglang

    return sglang


def drawn(shape: str, colour: str) -> bytes:
    """A PNG of one shape, as ``pocket-vl`` knows them."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(picture)
    box = (16, 18, 46, 48)
    if shape == "circle":
        draw.ellipse(box, colour)
    elif shape == "rectangle":
        draw.rectangle(box, colour)
    else:
        draw.polygon([(31, 14), (14, 48), (48, 48)], colour)
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


class Programs:
    """The frontend's features, one program each."""

    def __init__(self, sgl: Any) -> None:
        self.sgl = sgl
        self.red_circle = drawn("circle", "red")
        self.blue_rectangle = drawn("rectangle", "blue")

    def all(self) -> dict[str, Check]:
        names = [name for name in vars(type(self)) if not name.startswith("_") and name != "all"]
        return {name.replace("_", " "): getattr(self, name) for name in names}

    def _run(self, body: Callable[..., None], **options: Any) -> Any:
        return self.sgl.function(body).run(**{**GREEDY, **options})

    def _ask(self, picture: bytes, question: str, answer: Any) -> Callable[[Any], None]:
        def program(s: Any) -> None:
            s += self.sgl.user(self.sgl.image(picture) + question)
            s += self.sgl.assistant(answer)

        return program

    def chat(self) -> str:
        def program(s: Any) -> None:
            s += self.sgl.system("You are a helpful assistant.")
            s += self.sgl.user("Hello")
            s += self.sgl.assistant(self.sgl.gen("first", max_tokens=16))
            with s.user():
                s += "Describe the picture."
            with s.assistant():
                s += self.sgl.gen("second", max_tokens=16)

        state = self._run(program)
        assert state["first"]
        assert state["second"]
        assert "<|im_end|>" not in state["first"]
        assert len(state.messages()) == 5
        assert state.get_meta_info("first")["finish_reason"]["type"] == "stop"
        return repr(state["first"])

    def completion_without_roles(self) -> str:
        def program(s: Any) -> None:
            s += "One, two, three," + self.sgl.gen("more", max_tokens=4, stop="\n") + "."

        state = self._run(program)
        assert state.text() == "One, two, three," + state["more"] + "."
        return repr(state["more"])

    def image(self) -> str:
        state = self._run(self._ask(self.red_circle, "What color is the circle?", self.sgl.gen("answer")))
        assert state["answer"] == "red", state["answer"]
        assert state.get_meta_info("answer")["image_tokens"] > 0
        return repr(state["answer"])

    def image_follow_up(self) -> str:
        def program(s: Any) -> None:
            s += self.sgl.user(self.sgl.image(self.blue_rectangle) + "What shape is it?")
            s += self.sgl.assistant(self.sgl.gen("shape"))
            s += self.sgl.user("What color is it?")
            s += self.sgl.assistant(self.sgl.gen("colour"))

        state = self._run(program)
        assert "rectangle" in state["shape"], state["shape"]
        assert "blue" in state["colour"], state["colour"]
        assert state.get_meta_info("colour")["cached_tokens"] > 0
        return f"{state['shape']!r}, {state['colour']!r}"

    def select(self) -> str:
        state = self._run(self._ask(self.red_circle, "What color is the circle?", self.sgl.select("c", COLOURS)))
        assert state["c"] == "red", state["c"]
        assert len(state.get_meta_info("c")["normalized_prompt_logprobs"]) == len(COLOURS)
        return repr(state["c"])

    def choices_of_gen(self) -> str:
        gen = self.sgl.gen("shape", choices=SHAPES)
        state = self._run(self._ask(self.blue_rectangle, "What shape does the image contain?", gen))
        assert state["shape"] == "rectangle", state["shape"]
        return repr(state["shape"])

    def select_by_greedy_tokens(self) -> str:
        gen = self.sgl.gen("c", choices=COLOURS, choices_method=self.sgl.greedy_token_selection)
        state = self._run(self._ask(self.red_circle, "What color is the circle?", gen))
        assert state["c"] == "red", state["c"]
        return repr(state["c"])

    def select_by_unconditional_likelihood(self) -> str:
        """Of text: the frontend sends the picture again with the choices' tokens, where it has no place."""

        def program(s: Any) -> None:
            method = self.sgl.unconditional_likelihood_normalized
            s += "Shapes: " + self.sgl.select("shape", SHAPES, choices_method=method)

        state = self._run(program)
        assert state["shape"] in SHAPES
        assert state.get_meta_info("shape")["unconditional_token_logprobs"]
        return repr(state["shape"])

    def regex(self) -> str:
        pattern = r"(a|the) (red|blue) (circle|rectangle|triangle)"
        gen = self.sgl.gen("answer", regex=pattern, max_tokens=32)
        state = self._run(self._ask(self.red_circle, "Describe the picture.", gen))
        assert re.fullmatch(pattern, state["answer"]), state["answer"]
        return repr(state["answer"])

    def json_schema(self) -> str:
        properties = {"color": {"enum": COLOURS}, "shape": {"enum": SHAPES}}
        schema = {"type": "object", "properties": properties, "required": ["color", "shape"]}
        gen = self.sgl.gen("answer", json_schema=json.dumps(schema), max_tokens=48)
        state = self._run(self._ask(self.red_circle, "Describe the picture in JSON.", gen))
        value = json.loads(state["answer"])
        assert value["color"] in COLOURS, value
        assert value["shape"] in SHAPES, value
        return repr(state["answer"])

    def types_of_gen(self) -> str:
        def program(s: Any) -> None:
            s += "Number: " + self.sgl.gen_int("n", max_tokens=8) + "\n"
            s += "Share: " + self.sgl.gen("f", dtype=float, max_tokens=8) + "\n"
            s += "True? " + self.sgl.gen("b", dtype=bool, max_tokens=8) + "\n"
            s += "Word: " + self.sgl.gen_string("w", max_tokens=16) + "\n"

        state = self._run(program)
        assert state["b"] in ("True", "False")
        assert state["w"][0] == state["w"][-1] == '"'
        return f"{int(state['n'])}, {float(state['f'])}, {state['b']}, {state['w']}"

    def fork_and_join(self) -> str:
        def program(s: Any) -> None:
            s += self.sgl.user(self.sgl.image(self.red_circle) + "Look at it.")
            s += self.sgl.assistant("Yes.")
            forks = s.fork(2)
            for fork, question in zip(forks, ("What color is the circle?", "What shape is it?"), strict=True):
                fork += self.sgl.user(question)
                fork += self.sgl.assistant(self.sgl.gen("answer"))
            forks.join()
            s += self.sgl.user("So?")
            s += self.sgl.assistant(forks[0]["answer"] + " " + forks[1]["answer"])

        state = self._run(program)
        last = state.messages()[-1]["content"]
        assert "red" in last, last
        assert "circle" in last, last
        return repr(last)

    def stream(self) -> str:
        program = self.sgl.function(self._ask(self.red_circle, "What color is the circle?", self.sgl.gen("answer")))
        state = program.run(stream=True, **GREEDY)
        assert "".join(state.text_iter("answer")) == "red"
        whole = program.run(stream=True, **GREEDY)
        text = "".join(whole.text_iter())
        assert text.endswith("<|im_start|>assistant\nred<|im_end|>\n"), text
        return repr(text[-27:])

    def stream_async_with_logprobs(self) -> str:
        def program(s: Any) -> None:
            s += self.sgl.user("Hello")
            s += self.sgl.assistant(self.sgl.gen("answer", return_logprob=True, top_logprobs_num=2))

        async def read() -> list[tuple[str, Any]]:
            state = self._run(program, stream=True)
            return [each async for each in state.text_async_iter("answer", return_meta_data=True)]

        chunks = asyncio.run(read())
        _, meta = chunks[-1]
        counted = meta["completion_tokens"]
        assert counted == meta["output_token_logprobs_length"] > 0
        return f"{len(chunks)} chunks, {counted} tokens"

    def logprobs_of_prompt_and_answer(self) -> str:
        def program(s: Any) -> None:
            options = {"return_logprob": True, "logprob_start_len": 0, "return_text_in_logprobs": True}
            s += "Hello" + self.sgl.gen("answer", max_tokens=3, ignore_eos=True, **options)

        meta = self._run(program).get_meta_info("answer")
        assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]
        assert "".join(text for _, _, text in meta["input_token_logprobs"]) == "Hello"
        assert len(meta["output_token_logprobs"]) == 3
        return str(meta["output_token_logprobs"][0])

    def batch(self) -> str:
        def program(s: Any, colour: str) -> None:
            s += self.sgl.user(self.sgl.image(drawn("circle", colour)) + "What color is the circle?")
            s += self.sgl.assistant(self.sgl.gen("answer"))

        wanted = ["red", "blue", "green", "black"] * 4
        states = self.sgl.function(program).run_batch([{"colour": c} for c in wanted], num_threads=8, **GREEDY)
        answers = [state["answer"] for state in states]
        assert answers == wanted, answers
        return f"{len(answers)} programs"

    def bind_var_scope_and_copy(self) -> str:
        def program(s: Any, question: str, picture: bytes) -> None:
            with s.var_scope("asked"):
                s += self.sgl.user(self.sgl.image(picture) + question)
            with s.copy() as other:
                other += self.sgl.assistant(self.sgl.gen("answer"))
                s.set_var("answer", other["answer"])

        bound = self.sgl.function(program).bind(question="What color is the circle?")
        state = bound.run(picture=self.red_circle, **GREEDY)
        assert state["asked"].endswith("circle?<|im_end|>\n")
        assert state["answer"] == "red"
        return repr(state["answer"])

    def stop_and_least_tokens(self) -> str:
        def program(s: Any) -> None:
            s += self.sgl.user("Hello")
            s += self.sgl.assistant(self.sgl.gen("a", stop=["e"]) + "|" + self.sgl.gen("b", min_tokens=20))

        state = self._run(program)
        assert "e" not in state["a"]
        assert state.get_meta_info("a")["finish_reason"] == {"type": "stop", "matched": "e"}
        assert state.get_meta_info("b")["completion_tokens"] >= 20
        return repr(state["a"])

    def cache_and_flush(self) -> str:
        self.sgl.flush_cache()
        info = self.sgl.get_server_info()
        program = self.sgl.function(self._ask(self.red_circle, "What color is the circle?", self.sgl.gen("answer")))
        program.run(**GREEDY).sync()
        again = program.run(**GREEDY)
        cached = again.get_meta_info("answer")["cached_tokens"]
        assert cached > 0
        return f"{cached} tokens cached, version {info['version']}"

    def errors_are_told(self) -> str:
        def program(s: Any) -> None:
            s += "Hello" + self.sgl.gen("answer", temperature=-1)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            error = self._run(program).error()
        assert "temperature" in str(error), error
        return str(error.args[0]["error"]["code"])


def sglangs_own(sgl: Any) -> dict[str, Check]:
    from sglang.test import test_programs as theirs

    del sgl
    checks = {
        "test_mt_bench": theirs.test_mt_bench,
        "test_select": partial(theirs.test_select, check_answer=False),
        "test_expert_answer": partial(theirs.test_expert_answer, check_answer=False),
        "test_decode_json": theirs.test_decode_json,
        "test_parallel_decoding": theirs.test_parallel_decoding,
        "test_stream": theirs.test_stream,
        "test_regex": theirs.test_regex,
        "test_dtype_gen": theirs.test_dtype_gen,
    }
    return {f"sglang {name}": check for name, check in checks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--chat-template", help="SGLang's name of one; by default it goes by the model's path")
    parser.add_argument("--only", default="", help="run the programs whose names contain this")
    arguments = parser.parse_args()
    sgl = import_frontend()
    backend = sgl.RuntimeEndpoint(arguments.url, chat_template_name=arguments.chat_template)
    sgl.set_default_backend(backend)
    print(f"sglang {sgl.__version__}, {backend.get_model_name()}, template {backend.get_chat_template().name}\n")
    checks = {name: c for name, c in {**Programs(sgl).all(), **sglangs_own(sgl)}.items() if arguments.only in name}
    failed = sum(not passed(name, check) for name, check in checks.items())
    print(f"\n{len(checks) - failed} of {len(checks)} programs are as they should be")
    sys.stdout.flush()
    os._exit(int(failed > 0))  # threads of programs that hang would keep the process


def passed(name: str, check: Check) -> bool:
    """Run one program and print its line of the table."""
    begin = time.perf_counter()
    outcome: list[tuple[str, str]] = []
    # A frontend's program can wait for ever for what its own thread failed to bring.
    runner = threading.Thread(target=lambda: outcome.append(_outcome(check)), daemon=True)
    runner.start()
    runner.join(LONGEST_SECONDS)
    status, shown = outcome[0] if outcome else ("FAILED", f"not ended after {LONGEST_SECONDS} s")
    print(f"{status:6}  {name:38} {time.perf_counter() - begin:5.2f} s  {shown[:300]}", flush=True)
    return status == "ok"


def _outcome(check: Check) -> tuple[str, str]:
    try:
        shown = check()
    except Exception as error:
        return (
            "FAILED",
            f"{type(error).__name__}: {error} (line {traceback.extract_tb(error.__traceback__)[-1].lineno})",
        )
    return "ok", "" if shown is None else str(shown)


if __name__ == "__main__":
    main()
