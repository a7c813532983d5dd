"""A template that only writes contents out is filled in once; what decides by them is found out."""

import dataclasses
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import make_tokenizer

from silotune.data.read.rows import Turn
from silotune.data.tokenize import rendering
from silotune.data.tokenize.chat_template import PLAIN_TEMPLATE, fill, template_of
from silotune.data.tokenize.rendering import renderings
from silotune.data.tokenize.template_flow import only_writes
from silotune.data.tokenize.template_layout import rendered
from silotune.errors import DataError

WRITES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You help<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "system in a name, messages cut": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
        "{{- 'S: ' + system_message + '<|im_end|>' }}{%- for message in messages %}"
        "{%- if not (message.role == 'ipython' or 'tool_calls' in []) %}"
        "{{- '<' + message['role'] + '>\n\n' + message['content'] | trim + '<|im_end|>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<assistant>\n\n' }}{%- endif %}"
    ),
    "roles renamed, turns checked": (
        "{% for message in messages %}{% if message.role == 'assistant' %}{% set role = 'model' %}{% else %}"
        "{% set role = message.role %}{% endif %}{{ '<' ~ role ~ '>' ~ (message.content | trim) ~ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<model>' }}{% endif %}"
    ),
    "a content in front of another turn, and twice": (
        "{% set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}{{ ns.count }}"
        "{% if m.role == 'system' %}{% set said = m.content %}{% elif m.role == 'user' and loop.index0 == 1 and "
        "messages[0].role == 'system' %}{{ messages[0].content + m.content + messages[0].content.strip() }}"
        "{% else %}{{ m.content if m.content is string else '' }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    ),
    "plain": PLAIN_TEMPLATE,
}
USES = {
    "a switch in the system turn": "{% if '/no_think' in messages[0].content %}x{% endif %}",
    "thoughts are cut": "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
    "set in a name": "{% set c = messages[0].content %}{% if c %}x{% endif %}",
    "used before it is set": "{% for m in messages %}{% if c == 'a' %}x{% endif %}{% set c = m.content %}{% endfor %}",
    "in a namespace": "{% set ns = namespace(c='') %}{% set ns.c = messages[0].content %}{% if ns.c %}x{% endif %}",
    "a macro closes over it": "{% macro m() %}{{ messages[0].content }}{% endmacro %}{% if m() == 'a' %}x{% endif %}",
    "a macro is given it": "{% macro m(c) %}{% if c %}x{% endif %}{% endmacro %}{{ m(messages[0].content) }}",
    "the whole message": "{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "the whole list": "{{ messages }}",
    "by another round": "{% for m in messages %}{{ 'x' if loop.previtem.content == 'a' }}{% endfor %}",
    "through an alias": "{% set all = messages %}{% set one = all[0] %}{% if one['content'] %}x{% endif %}",
    "by a computed key": "{% for m in messages %}{% if m['con' ~ 'tent'] %}x{% endif %}{% endfor %}",
    "by its values": "{% for m in messages %}{% for v in m.values() %}{{ v }}{% endfor %}{% endfor %}",
    "by its get": "{% for m in messages %}{% if m.get('content') %}x{% endif %}{% endfor %}",
    "repeated": "{{ messages[0].content * 2 }}",
    "trimmed with what stands before": "{{ (' ' + messages[0].content) | trim }}",
    "trimmed of given characters": "{{ messages[0].content | trim('a') }}",
    "stripped of given characters": "{{ messages[0].content.strip('a') }}",
    "unpacked": "{% for a, b in messages %}{{ a }}{% endfor %}",
    "a part of it": "{{ messages[0].content[:3] }}",
    "filtered": "{{ messages | map(attribute='content') | join }}",
    "selected by": "{% for m in messages if m.content %}x{% endfor %}",
    "a filter block": "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "kept": "{% set c %}{{ messages[0].content }}{% endset %}{% if c %}x{% endif %}",
    "length": "{{ messages[0].content | length }}",
    "test of equality": "{% if messages[0].content is eq 'a' %}x{% endif %}",
}
said = st.text(st.sampled_from(" \t\n\x1f\u00a0ab<>{}%'"), max_size=8)


@pytest.mark.parametrize("name", WRITES)
@given(
    contents=st.lists(said, min_size=5, max_size=5),
    system=st.sampled_from([None, "template", "first-user", "drop"]),
    exempt=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_filled_in_once_is_filled_in_for_each(name, contents, system, exempt):
    template = template_of(make_tokenizer(WRITES[name]), system or "template")
    assert only_writes(WRITES[name])
    roles = ["system"] * (system is not None) + ["user", "assistant"] * 2
    turns = [Turn(role, content) for role, content in zip(roles, contents, strict=False)]
    if exempt:
        turns[-3] = dataclasses.replace(turns[-3], learned=False)
    try:
        expected = renderings(template, turns)
    except DataError as error:
        with pytest.raises(DataError, match=re.escape(str(error)[:40])):
            rendered(template, turns)
        return
    assert [dataclasses.replace(one, thoughts_dropped=False) for one in expected] == rendered(template, turns)


@pytest.mark.parametrize("name", USES)
def test_a_use_of_a_content_is_found(name):
    assert not only_writes(USES[name])


@pytest.mark.parametrize("name", USES)
def test_a_template_that_uses_contents_is_filled_in_for_each_row(name):
    tokenizer = make_tokenizer("{{ '<|im_start|>' }}" + USES[name] + "{{ '<|im_end|>' * (messages | length) }}")
    template = template_of(tokenizer)
    for contents in itertools.product(("a", " b </think>c", "/no_think"), repeat=2):
        turns = [Turn("user", contents[0]), Turn("assistant", contents[1])]
        try:
            expected = renderings(template, turns)
        except DataError as error:
            with pytest.raises(DataError, match=str(error)[:30]):
                rendered(template, turns)
            continue
        assert rendered(template, turns) == expected


def test_the_template_is_filled_in_once_for_rows_of_the_same_roles(monkeypatch):
    template = template_of(make_tokenizer(WRITES["chatml"]))
    calls = []
    monkeypatch.setattr(rendering, "fill", lambda *given, **more: calls.append(1) or fill(*given, **more))
    for number in range(5):
        rendered(template, [Turn("user", f"q{number}"), Turn("assistant", "a")])
    once = len(calls)
    for number in range(500):
        rendered(template, [Turn("user", f"q{number}"), Turn("assistant", "a")])
    assert 0 < once == len(calls)
