"""``python -m mmserve.launch_server``: SGLang's flags become ours, or are refused with a hint."""

from __future__ import annotations

import pytest

from mmserve.cli import build_parser
from mmserve.cli_backend import _engine_config
from mmserve.launch_server import ALIASES, Misuse, main, serve_flags, translate


def test_the_tutorial_s_spelling_is_a_serve_command() -> None:
    said, notes = translate(["--model-path", "qwen2-vl-2b", "--port", "30000", "--host", "0.0.0.0"])
    arguments = build_parser().parse_args(["serve", *said])
    assert (arguments.model, arguments.port, arguments.host) == ("qwen2-vl-2b", 30000, "0.0.0.0")
    assert not notes


def test_the_port_is_sglang_s_where_none_is_given() -> None:
    assert build_parser().parse_args(["serve", *translate(["--model-path=x"])[0]]).port == 30000
    assert build_parser().parse_args(["serve", *translate(["--port=1"])[0]]).port == 1


@pytest.mark.parametrize("flag", sorted(ALIASES))
def test_every_alias_leads_to_an_option(flag: str) -> None:
    assert ALIASES[flag] in serve_flags()
    assert translate([flag, "1"])[0][:2] == [ALIASES[flag], "1"]
    assert translate([flag.replace("-", "_").replace("__", "--", 1) + "=1"])[0][0] == ALIASES[flag] + "=1"


def test_our_own_options_pass() -> None:
    said, _ = translate(["--max-pictures", "3", "--drain-seconds=5", "--log-level", "WARN"])
    arguments = build_parser().parse_args(["serve", *said])
    shared, _ = translate(["--tp_size", "2"])
    assert _engine_config(build_parser().parse_args(["serve", *shared])).tp_size == 2
    assert (arguments.max_pictures, arguments.drain_seconds, arguments.log_level) == (3, 5.0, "warning")


def test_what_is_so_anyway_is_noted() -> None:
    said, notes = translate(["--enable-metrics", "--trust-remote-code", "--dp", "1", "--port", "1"])
    assert said == ["--port", "1"]
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--model-pth", "x"], "did you mean --model-path?"),
        (["--speculative-algorithm", "EAGLE"], "mmserve serve --help"),
        (["--nnodes", "2"], "can only be 1"),
        (["--dp-size=2"], "can only be 1"),
        (["--dp"], "can only be 1"),
    ],
)
def test_what_has_no_counterpart_is_refused(argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Misuse):
        translate(argv)
    assert main(argv) == 2
    assert hint in capsys.readouterr().err


def test_a_bad_model_is_serve_s_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-path", "no-such-model", "--port", "0"]) == 1
    assert "models.yaml" in capsys.readouterr().err
