from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mmserve.errors import CheckpointError, InvalidField
from mmserve.prompt.template import ChatTemplate
from tests.checkpoints import QWEN_CHAT_TEMPLATE

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is <this> & that?"}]},
    {"role": "assistant", "content": "A cat — 猫."},
    {"role": "user", "content": "And  \n this?"},
]

TEMPLATES = [
    QWEN_CHAT_TEMPLATE,
    "{% for message in messages %}\n  {% if message.role == 'system' %}{% continue %}{% endif %}\n"
    "  {{- message.role }}: {{ message | tojson }}\n{% endfor %}\nend\n",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }};{% endfor %}{{ bos_token }}",
    "{% generation %}{{ messages | tojson(indent=2) }}{% endgeneration %}",
    "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    "{% if add_generation_prompt %}go{% endif %}{% if tools %}tools{% endif %}{{ undefined_name }}",
    "{{ messages[0].content | trim }}{{ messages[3].content.split('\\n') | last }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("add", [True, False])
def test_rendered_as_transformers_renders(source: str, add: bool) -> None:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    ours = template.render(CONVERSATION, add_generation_prompt=add)
    theirs = render_jinja_template([CONVERSATION], chat_template=source, add_generation_prompt=add, bos_token="<s>")
    assert ours == theirs[0][0]


def test_the_date_is_todays() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", {})
    assert abs(int(template.render([], add_generation_prompt=False)) - datetime.now().year) <= 1


def test_what_the_template_refuses_is_an_invalid_field() -> None:
    template = ChatTemplate("{{ raise_exception('roles must take turns') }}", {})
    with pytest.raises(InvalidField, match="refuses these messages: roles must take turns") as caught:
        template.render(CONVERSATION, add_generation_prompt=True)
    assert caught.value.param == "messages"


def test_what_a_template_trips_over_is_an_invalid_field() -> None:
    with pytest.raises(InvalidField, match="refuses"):
        ChatTemplate("{{ messages[0].content + 1 }}", {}).render(CONVERSATION, add_generation_prompt=True)


def test_a_template_that_does_not_parse_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match="does not parse"):
        ChatTemplate("{% if %}", {})


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ self.__init__.__globals__ }}", "{% include 'x' %}"],
)
def test_templates_are_kept_in_a_sandbox(source: str) -> None:
    try:
        rendered = ChatTemplate(source, {}).render(CONVERSATION, add_generation_prompt=True)
    except (InvalidField, CheckpointError):
        return
    assert rendered == ""
