"""The law: what is trained on is one whole rendering by the tokenizer's own `apply_chat_template`, up to an answer's end.

The oracle here knows the families' templates from reading them (`families`), renders with transformers and takes the
borders of tokens from transformers' own offsets.
"""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.families import FAMILIES, Family, with_template

from silotune.data.read.rows import Row, Turn
from silotune.data.tokenize.chat_template import fill, template_of
from silotune.data.tokenize.rendering import control_tokens, turn_end
from silotune.data.tokenize.template_check import oddities
from silotune.data.tokenize.tokens import ChatOptions, encode, encode_prompt
from silotune.errors import DataError

KINDS = ("bytes", "sentencepiece", "wordpiece")
SYSTEM = Turn("system", "Be brief.")
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "description": "Rain or not", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}])  # fmt: skip
CALL = json.dumps(
    [
        {
            "id": "abcdef123",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Oxbay", "days": 2}},
        }
    ]
)


def U(text):
    return Turn("user", text)


def A(text, **more):
    return Turn("assistant", text, **more)


ASKED = (U("When does the kiosk open?"), A("It opens at nine."))
CONVERSATIONS = {
    "one turn": (ASKED, None),
    "system": ((SYSTEM, *ASKED), None),
    "several turns": ((*ASKED, U("And on Sundays?"), A("At noon."), U("Be brief."), A("Nine. Noon.")), None),
    "thinking": ((U("2+3?"), A("<think>\nadd them\n</think>\n\n5"), U("4+4?"), A("<think>\nadd\n</think>\n\n8")), None),
    "tools": ((U("Rain?"), A("", tool_calls=CALL), Turn("tool", "yes", name="weather", tool_call_id="abcdef123"), A("Yes."),
               U("And then?"), A("No.")), TOOLS),
    "odd blanks": ((U("  two  blanks\n"), A("\n  é\tindented\n\n"), U("?"), A(" 🙂 ")), None),
}  # fmt: skip


def messages(turns, calls_as_text):
    """As transformers wants them."""
    found = []
    for turn in turns:
        message = {"role": turn.role, "content": turn.content}
        if turn.tool_calls:
            calls = json.loads(turn.tool_calls)
            for call in calls if calls_as_text else ():
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
            message["tool_calls"] = calls
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.role == "tool":
            message |= {"name": turn.name, "tool_call_id": turn.tool_call_id}
        found.append(message)
    return found


class Oracle:
    """What transformers makes of a conversation."""

    def __init__(self, family: Family, kind: str, turns, tools):
        self.family, self.turns, self.tools = family, turns, tools
        self.tokenizer = with_template(kind, family.template)
        self.as_text = (
            "calls.function.arguments" in family.template or "+ call.function.arguments + ')'" in family.template
        )

    def written(self, count, prompt=False, tokenize=False):
        return self.tokenizer.apply_chat_template(
            messages(self.turns[:count], self.as_text), tools=json.loads(self.tools) if self.tools else None,
            tokenize=tokenize, add_generation_prompt=prompt, return_dict=False,
        )  # fmt: skip

    def answers(self):
        return [number for number, turn in enumerate(self.turns) if turn.role == "assistant"]

    def span(self, number):
        """Characters of an answer in the rendering that ends with it."""
        whole, before = self.written(number + 1), self.written(number, prompt=True)
        start = len(before) - len(self.family.unsaid)
        assert whole[:start] == before[:start]
        end = self.end(number)
        return start, whole.rindex(end) + len(end) if end else len(whole) - len(self.family.tail)

    def end(self, number):
        return "<|eom|>" if self.turns[number].tool_calls and "<|eom|>" in self.family.template else self.family.end

    def marks(self, number, wanted):
        """Tokens of the rendering that ends with an answer, up to its end; and which of them belong to answers."""
        whole = self.written(number + 1)
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        assert encoded["input_ids"] == self.written(number + 1, tokenize=True)
        spans = [self.span(one) for one in wanted]
        end = spans[-1][1]
        kept = [
            (token, at)
            for token, at in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if at[0] < end
        ]
        marked = [any((at[0] < last) and (at[1] > first or at[0] >= first) for first, last in spans) for _, at in kept]
        ids = [token for token, _ in kept]
        return (ids, marked) if self.end(number) else ([*ids, self.tokenizer.eos_token_id], [*marked, True])


def refused(family, name, turns):
    return ((turns[0].role == "system" and not family.system and "no place for a system turn")
            or (name == "tools" and not family.tools and "no place for"))  # fmt: skip


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_on_every_tokenizer(name, kind, conversation):
    family, (turns, tools) = FAMILIES[name], CONVERSATIONS[conversation]
    oracle = Oracle(family, kind, turns, tools)
    if says := refused(family, conversation, turns):
        with pytest.raises(DataError, match=says):
            encode(oracle.tokenizer, [Row(turns, 7, tools=tools)], 4096)
        return
    (found,) = encode(oracle.tokenizer, [Row(turns, 7, tools=tools)], 4096)
    answers = oracle.answers()
    apart = family.apart or (family.apart_thinking and conversation == "thinking")
    if conversation == "tools" and "think" in family.template:  # the chain of calls is in the last turn's sight
        groups = [[1, 3], [5]]
    else:
        groups = [[one] for one in answers] if apart else [answers]
    assert len(found) == len(groups)
    for example, group in zip(found, groups, strict=True):
        ids, marked = oracle.marks(group[-1], group)
        assert example.ids.tolist() == ids
        assert example.answered.tolist() == marked
        assert not example.cut and not example.answer_cut
    for number in answers:
        prompt = encode_prompt(oracle.tokenizer, turns[:number], tools)
        assert prompt == oracle.written(number, prompt=True, tokenize=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_turn_is_what_generation_stops_at(name, kind):
    family = FAMILIES[name]
    tokenizer = with_template(kind, family.template)
    end = turn_end(template_of(tokenizer))
    last = next((token for token in ("<|end|>", "<|im_end|>", "<|eot|>", "</turn>", "<|return|>", "</s>")
                 if family.end.endswith(token)), None)  # fmt: skip
    expected = {tokenizer.convert_tokens_to_ids(last)} if last else set()
    if "<|eom|>" in family.template:
        expected.add(tokenizer.convert_tokens_to_ids("<|eom|>"))
    assert set(end.tokens) == expected
    assert end.stop == ("" if last else family.end.strip()) and end.text == family.end.strip()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_odd_is_told_and_nothing_else(name):
    family = FAMILIES[name]
    said = " ".join(oddities(with_template("bytes", family.template)))
    assert ("writes no end of turn" in said) == (not family.end)
    assert ("ends a turn with the text" in said) == (name == "an end in words")
    assert ("add_generation_prompt does nothing" in said) == bool(family.header)
    always = family.template.count("add_generation_prompt") == 0 and not family.header
    assert ("add_generation_prompt changes nothing" in said) == always
    assert ("does not write before an answer" in said) == bool(family.unsaid)
    starts = family.template.startswith(("{{ bos_token }}", "{{- bos_token }}", "<s>")) or "[INST]" in family.template
    assert ("does not begin with <s>" in said) == (not starts)


def test_more_oddities():
    twice = with_template("bytes", "{{ bos_token + bos_token }}" + FAMILIES["chatml"].template)
    assert "writes <s> twice" in " ".join(oddities(twice))
    padded = with_template("bytes", FAMILIES["chatml"].template)
    padded.pad_token = "<|im_end|>"
    assert "<|im_end|> is the end of turn and the padding as well" in " ".join(oddities(padded))
    assert "writes no question with its answer" in oddities(with_template("bytes", "{{ raise_exception('no') }}"))[0]


# --------------------------------------------------------------------------------------------- the law, drawn

text = st.text(st.sampled_from("abe Né.?!-\n\t 🙂東 <|[]"), min_size=1, max_size=12).filter(str.strip)
chats = st.lists(st.tuples(text, text), min_size=1, max_size=3)


@given(name=st.sampled_from(sorted(FAMILIES)), kind=st.sampled_from(KINDS), chat=chats, system=st.none() | text)
@settings(max_examples=150, deadline=None)
def test_the_law_holds_for_any_texts(name, kind, chat, system):
    family = FAMILIES[name]
    if system is not None and not family.system:
        system = None
    turns = [Turn("system", system)] if system is not None else []
    for asked, said in chat:
        turns += [U(asked), A(said)]
    tokenizer = with_template(kind, family.template)
    oracle = Oracle(family, kind, turns, None)
    (found,) = encode(tokenizer, [Row(tuple(turns), 1)], 4096)
    learned = 0
    for example in found:
        last = max(number for number in oracle.answers() if _begins(example, oracle, number))
        whole = oracle.written(last + 1, tokenize=True)
        kept = example.ids.tolist()[: len(example.ids) - (not family.end)]
        assert kept == whole[: len(kept)]
        assert example.answered[-1] and (family.end or example.ids[-1] == tokenizer.eos_token_id)
        learned += len(_runs(example.answered))
    assert learned == len(chat)
    for number in oracle.answers():
        assert encode_prompt(tokenizer, turns[:number]) == oracle.written(number, prompt=True, tokenize=True)


def _begins(example, oracle, number):
    whole = oracle.written(number + 1, tokenize=True)
    kept = example.ids.tolist()[: len(example.ids) - (not oracle.family.end)]
    return whole[: len(kept)] == kept


def _runs(answered):
    return [index for index, marked in enumerate(answered) if marked and not (index and answered[index - 1])]


# ------------------------------------------------------------------------------------------ options of a recipe


def words(tokenizer, example):
    return tokenizer.decode(example.ids[example.answered].tolist(), skip_special_tokens=True).strip()


def test_system_turns_go_where_the_recipe_says():
    tokenizer = with_template("bytes", FAMILIES["no system turn, roles renamed"].template)
    row = Row((SYSTEM, *ASKED), 1)
    for system, said in (
        ("first-user", "Be brief.\n\nWhen does the kiosk open?"),
        ("drop", "When does the kiosk open?"),
    ):
        ((example,),) = encode(tokenizer, [row], 512, ChatOptions(system=system))
        ((plain,),) = encode(tokenizer, [Row((U(said), ASKED[1]), 1)], 512)
        assert example.ids.tolist() == plain.ids.tolist() and example.answered.tolist() == plain.answered.tolist()
        prompt = encode_prompt(tokenizer, row.turns[:-1], system=system)
        assert prompt == example.ids.tolist()[: len(prompt)]


def test_a_template_that_leaves_the_system_turn_out_in_silence_is_refused_the_same():
    template = "{% for m in messages if m.role != 'system' %}{{ m.content + eos_token }}{% endfor %}"
    with pytest.raises(DataError, match=r'no place for a system turn\. Set data\.system = "first-user"'):
        encode(with_template("bytes", template), [Row((SYSTEM, *ASKED), 3)], 512)
    template = "{% for m in messages if m.role != 'user' %}{{ m.content + eos_token }}{% endfor %}"
    with pytest.raises(
        DataError, match=r"line 3: the model's chat template leaves out what turn 1 says, .*take a base"
    ):
        encode(with_template("bytes", template), [Row(ASKED, 3)], 512)


@pytest.mark.parametrize("name", ["chatml", "thoughts of earlier turns are dropped", "words and no end"])
def test_loss_is_where_rows_and_recipe_say(name):
    tokenizer = with_template("bytes", FAMILIES[name].template)
    turns = (U("2+3?"), A("5", learned=False), U("4+4?"), A("8"), U("5"), A("no", learned=False))

    def learned(row, **options):
        return [words(tokenizer, example).removeprefix("<think>\n\n</think>").strip()
                for example in encode(tokenizer, [row], 512, ChatOptions(**options))[0]]  # fmt: skip

    assert learned(Row(turns, 1)) == ["8"]
    assert learned(Row(turns[:4], 1)) == ["8"]
    every = tuple(Turn(turn.role, turn.content) for turn in turns)
    assert "".join(learned(Row(every, 1))).replace(" ", "") == "58no"
    assert learned(Row(every, 1), loss_on="last") == ["no"]


def test_thoughts_apart_go_where_the_template_has_a_place_for_them():
    turns = (U("2+3?"), A("5", reasoning="add them"), U("4+4?"), A("8", reasoning="add"))
    tokenizer = with_template("bytes", FAMILIES["thoughts of earlier turns are dropped"].template)
    (found,) = encode(tokenizer, [Row(turns, 1)], 512)
    said = [words(tokenizer, example) for example in found]
    assert said == ["<think>\nadd them\n</think>\n\n5", "<think>\nadd\n</think>\n\n8"]
    assert not any(example.thoughts_dropped for example in found)
    with pytest.raises(DataError, match=r"no place for reasoning_content\. Write it into the content"):
        encode(with_template("bytes", FAMILIES["chatml"].template), [Row(turns, 1)], 512)


LATER = "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.reasoning_content and loop.last %}" \
    "{{ '<|start|>think<|message|>' + m.reasoning_content + '<|end|>' }}{% endif %}{% if m.tool_calls %}" \
    "{{ '<|start|>call<|message|>' + (m.tool_calls[0].function | tojson) + '<|end|>' }}{% else %}" \
    "{{ '<|start|>final<|message|>' + m.content + '<|end|>' }}{% endif %}{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}" \
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>' }}{% endif %}"  # fmt: skip
"""Thoughts are written in the last turn only, also those before a call: an answer changes how the call is written."""


def shown(tokenizer, example):
    """The text of an example, with what carries loss in brackets."""
    runs = [(bool(marked), [int(token) for _, token in group]) for marked, group in itertools.groupby(
        zip(example.answered, example.ids, strict=True), lambda pair: pair[0])]  # fmt: skip
    return "".join(f"[{tokenizer.decode(ids)}]" if marked else tokenizer.decode(ids) for marked, ids in runs)


def test_an_answer_that_changes_how_the_turns_before_it_are_written_is_learned_whole():
    tokenizer = with_template("bytes", LATER)
    call = A("", tool_calls=CALL, reasoning="check")
    turns = (U("Rain?"), call, Turn("tool", "yes", name="weather", tool_call_id="abcdef123"), A("Yes.", reasoning="so"))
    (found,) = encode(tokenizer, [Row(turns, 1)], 512)
    function = '{"name": "weather", "arguments": {"city": "Oxbay", "days": 2}}'
    user = "<|start|>user<|message|>Rain?<|end|><|start|>"
    assert [shown(tokenizer, one) for one in found] == [
        f"{user}[think<|message|>check<|end|><|start|>call<|message|>{function}<|end|>]",
        f"{user}call<|message|>{function}<|end|><|start|>tool<|message|>yes<|end|><|start|>"
        "[think<|message|>so<|end|><|start|>final<|message|>Yes.<|end|>]",
    ]
    assert not any(one.thoughts_dropped for one in found)


def test_thoughts_in_an_answer_s_text_are_learned_where_the_prompt_closes_an_empty_one():
    family = FAMILIES["thoughts of earlier turns are dropped"]
    closed = family.template.replace(
        "add_generation_prompt %}{{- '<|im_start|>assistant\n' }}",
        "add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}",
    )
    tokenizer = with_template("bytes", closed)
    (found,) = encode(tokenizer, [Row((U("2+3?"), A("<think>add</think>5")), 1)], 512)
    assert shown(tokenizer, found[0]).endswith("<think>\n[add\n</think>\n\n5<|im_end|>]")
    assert control_tokens(template_of(tokenizer)).isdisjoint({"<think>", "</think>"})


def test_the_prompt_that_is_added_closes_no_thought():
    template = FAMILIES["thoughts of earlier turns are dropped"].template.rpartition("{%- if add_generation_prompt %}")[
        0
    ]
    tokenizer = with_template("bytes", template)
    assert fill(template_of(tokenizer), [U("?")], prompt=True).endswith("<|im_start|>assistant\n<think>\n")
    (found,) = encode(tokenizer, [Row((U("2+3?"), A("5", reasoning="add")), 1)], 512)
    assert shown(tokenizer, found[0]).endswith("<think>\n[add\n</think>\n\n5<|im_end|>]")


def test_a_header_that_takes_in_blanks_carries_no_loss():
    from tokenizers import AddedToken

    tokenizer = with_template("bytes", FAMILIES["two tokens end a turn"].template)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|assistant|>", rstrip=True, special=True)]}
    )
    turns = (U("Rain?"), A(" \n yes"))
    ((found,),) = encode(tokenizer, [Row(turns, 1)], 512)
    prompt = encode_prompt(tokenizer, turns[:1])
    assert found.ids[: len(prompt)].tolist() == prompt and found.last_answer == len(prompt)


def test_calls_end_with_the_turn_and_not_with_the_call():
    template = ("{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content }}{% for c in m.tool_calls or [] %}"
                "{{ '<tool_call>' + (c.function | tojson) + '</tool_call>' }}{% endfor %}{{ eos_token }}{% else %}"
                "{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% if loop.first and tools %}{{ tools | tojson }}{% endif %}{% endfor %}")  # fmt: skip
    tokenizer = with_template("bytes", template)
    assert turn_end(template_of(tokenizer)).tokens == (tokenizer.eos_token_id,)


def test_tools_in_a_form_of_the_template_s_own():
    template = ("{% if tools %}{% for t in tools %}{% if t.takes is not defined %}{{ raise_exception('takes') }}{% endif %}"
                "{{ t.name + '(' + t.takes + ')' }}{% endfor %}{% endif %}" + FAMILIES["chatml"].template)  # fmt: skip
    tokenizer = with_template("bytes", template)
    ((found,),) = encode(tokenizer, [Row(ASKED, 1, tools='[{"name": "weather", "takes": "city"}]')], 512)
    assert shown(tokenizer, found).startswith("weather(city)<|im_start|>user")
    with pytest.raises(DataError, match="no place for tools"):
        encode(tokenizer, [Row(ASKED, 1, tools=TOOLS)], 512)


def test_thoughts_that_a_template_drops_are_told():
    dropping = with_template("bytes", FAMILIES["thoughts are dropped, and asked for"].template)
    (found,) = encode(dropping, [Row(CONVERSATIONS["thinking"][0], 1)], 512)
    assert [words(dropping, example) for example in found] == ["58"] and found[0].thoughts_dropped
    ((kept,),) = encode(
        with_template("bytes", FAMILIES["chatml"].template), [Row(CONVERSATIONS["thinking"][0], 1)], 512
    )
    assert not kept.thoughts_dropped


@pytest.mark.parametrize("arguments", ['{"city": "Oxbay"}', {"city": "Oxbay"}])
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.tools])
def test_arguments_of_calls_are_written_once_however_the_row_holds_them(name, arguments):
    tokenizer = with_template("bytes", FAMILIES[name].template)
    calls = json.dumps([{"type": "function", "function": {"name": "weather", "arguments": arguments}}])
    turns = (U("Rain?"), A("", tool_calls=calls), Turn("tool", "yes"), A("Yes."))
    (found,) = encode(tokenizer, [Row(turns, 1, tools=TOOLS)], 512)
    assert '{"city": "Oxbay"}' in tokenizer.decode(found[-1].ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["chatml", "thoughts of earlier turns are dropped", "two tokens end a turn", "plain"])
@pytest.mark.parametrize("special", ["<|im_end|>", "</s>", "<|end|>", "<|im_start|>assistant\nfake"])
def test_no_row_ends_or_begins_a_turn_by_what_it_says(name, kind, special):
    tokenizer = with_template(kind, FAMILIES[name].template)
    named = (U(f"say {special} now"), A(f"so {special}"), U("5"), A(f"{special}8"))
    plain = (U("say now"), A("so"), U("5"), A("8"))
    for examples in zip(*(encode(tokenizer, [Row(turns, 1)], 512)[0] for turns in (named, plain)), strict=True):
        for token in set(tokenizer.all_special_ids) | set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|end|>"])):
            if token != tokenizer.unk_token_id:
                one, other = (example.ids.tolist().count(token) for example in examples)
                assert one == other
    prompt = encode_prompt(tokenizer, named[:1])
    assert prompt == encode(tokenizer, [Row(named[:2], 1)], 512)[0][0].ids.tolist()[: len(prompt)]


def test_tokens_that_are_added_and_not_special_are_what_a_row_says():
    tokenizer = with_template("bytes", FAMILIES["chatml"].template)
    ((example,),) = encode(tokenizer, [Row((U("2+3?"), A("<think>add</think>5")), 1)], 512)
    assert {"<think>", "</think>"} <= set(tokenizer.convert_ids_to_tokens(example.ids.tolist()))


def test_a_control_token_that_is_not_special_ends_no_turn_from_a_row():
    tokenizer = with_template("bytes", FAMILIES["chatml"].template.replace("<|im_end|>", "</tool_call>"))
    ((example,),) = encode(tokenizer, [Row((U("a</tool_call>b"), A("c")), 1)], 512)
    assert tokenizer.convert_ids_to_tokens(example.ids.tolist()).count("</tool_call>") == 2
