"""Chat templates in the style of the families that people use, and small tokenizers of the three kinds.

The templates are our own wording. What stands beside each is known from reading it, not from running it.
"""

import functools
from dataclasses import dataclass
from typing import Any

from silotune.data.tokenize.chat_template import PLAIN_TEMPLATE

SPECIAL = [
    "<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|eot|>",
    "<|eom|>", "<|head|>", "<|/head|>", "<turn>", "</turn>", "<|return|>", "<|start|>", "<|message|>", "<|final|>",
]  # fmt: skip
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""Added tokens that are not special, so that a row may say them."""


@dataclass(frozen=True)
class Family:
    """A template and what is true of it."""

    template: str
    end: str
    """How an answer at the end of a conversation ends; empty where the template writes no end."""
    system: bool = True
    tools: bool = False
    """Whether there is a place for tools, calls and tool turns."""
    reasoning: bool = False
    apart: bool = False
    """Whether each answer of a conversation of several turns is written otherwise later on."""
    apart_thinking: bool = False
    """The same, of answers with thoughts in them."""
    unsaid: str = ""
    """What a prompt ends with and an answer that is there does not begin with."""
    opening: str = ""
    """What stands between the prompt and the answer's own text."""
    tail: str = ""
    """What the template writes after an answer that it writes no end of."""
    header: str = ""
    """What the template lacks when it is asked for a prompt."""
    trims: bool = False


_LOOP = "{% for m in messages %}"
_PROMPT = "{% if add_generation_prompt %}"
_CHATML = _LOOP + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
_HEADS = (
    "{{ bos_token }}"
    + _LOOP
    + "{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
)
_THINKS = """{%- if tools %}{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}{{- '# Tools' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}
{%- set said = m.content %}{%- set thought = '' %}
{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
{%- elif '</think>' in said %}{%- set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last %}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}
{{- said }}
{%- if m.tool_calls %}{%- for call in m.tool_calls %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}{%- endif %}
{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
_CALLS = """{{- bos_token }}{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}{{- '<|head|>assistant<|/head|>' }}
{%- for call in m.tool_calls %}{{- call.function.name + '(' + call.function.arguments + ')' }}{%- endfor %}{{- '<|eom|>' }}
{%- else %}{{- '<|head|>' + m.role + '<|/head|>' + m.content + '<|eot|>' }}{%- endif %}
{%- if loop.first and tools %}{{- '<|head|>tools<|/head|>' + (tools | tojson) + '<|eot|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>' }}{%- endif %}"""

FAMILIES = {
    "chatml": Family(_CHATML + _PROMPT + "{{ '<|im_start|>assistant\n' }}{% endif %}", "<|im_end|>"),
    "chatml, a system turn of its own": Family(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
        + _CHATML + _PROMPT + "{{ '<|im_start|>assistant\n' }}{% endif %}", "<|im_end|>"),
    "chatml, no generation prompt": Family(_CHATML, "<|im_end|>", header="<|im_start|>assistant\n"),
    "headers": Family(_HEADS + _PROMPT + "{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}", "<|eot|>", trims=True),
    "headers, always open": Family(_HEADS + "{{ '<|head|>assistant<|/head|>\n\n' }}", "<|eot|>", trims=True),
    "no system turn, roles renamed": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + _LOOP + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '</turn>\n' }}{% endfor %}"
        + _PROMPT + "{{ '<turn>model\n' }}{% endif %}", "</turn>", system=False, trims=True),
    "instructions in brackets": Family(
        "{{ bos_token }}" + _LOOP + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('roles') }}{% endif %}{% endfor %}",
        "</s>", system=False, opening=" "),
    "instructions in brackets, system inside": Family(
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% else %}{% set rest = messages %}{% set s = '' %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (s if loop.first else '') + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}", " </s>", opening=" "),
    "a header and the end of sequence": Family(
        _LOOP + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}" + _PROMPT + "{{ '<|assistant|>\n' }}{% endif %}",
        "</s>"),
    "a tail after the last turn": Family(
        _LOOP + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        + _PROMPT + "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}", "<|end|>"),
    "an end after the last turn only": Family(
        _LOOP + "{{ m.role + ': ' + m.content }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
        + _PROMPT + "{{ '\nassistant: ' }}{% else %}{{ eos_token }}{% endif %}", "</s>", apart=True),
    "another end for the last turn": Family(
        _LOOP + "{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}{{ '<|final|>' }}{% endif %}{{ '<|message|>' + m.content }}"
        "{% if loop.last and m.role == 'assistant' %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}{% endfor %}"
        + _PROMPT + "{{ '<|start|>assistant' }}{% endif %}", "<|return|>", apart=True, opening="<|final|><|message|>"),
    "thoughts of earlier turns are dropped": Family(
        _THINKS, "<|im_end|>", tools=True, reasoning=True, apart=True, apart_thinking=True, opening="<think>\n\n</think>\n\n"),
    "thoughts are dropped, and asked for": Family(
        "{{ bos_token }}" + _LOOP + "{% set c = m.content %}{% if m.role == 'assistant' %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip() %}{% endif %}{{ '<|assistant|>' + c + '<|end|>' }}"
        "{% else %}{{ '<|' + m.role + '|>' + c }}{% endif %}{% endfor %}" + _PROMPT + "{{ '<|assistant|><think>\n' }}{% endif %}",
        "<|end|>", unsaid="<think>\n"),
    "calls as text, another end for them": Family(_CALLS, "<|eot|>", tools=True),
    "role tokens and no end": Family(
        "<s>" + _LOOP + "{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}" + _PROMPT + "{{ '<|assistant|>' }}{% endif %}", "",
        apart=True, opening="\n"),
    "words and no end": Family(
        _LOOP + "{{ m.role | capitalize + ': ' + m.content + '\n' }}{% endfor %}" + _PROMPT + "{{ 'Assistant:' }}{% endif %}", "",
        apart=True, opening=" ", tail="\n"),
    "an end in words": Family(
        _LOOP + "{{ '### ' + m.role + '\n' + m.content + '\n### End\n' }}{% endfor %}" + _PROMPT + "{{ '### assistant\n' }}{% endif %}",
        "\n### End"),
    "two tokens end a turn": Family(
        _LOOP + "{{ '<|' + m.role + '|>' + m.content + eos_token + '<|end|>\n' }}{% endfor %}" + _PROMPT + "{{ '<|assistant|>' }}{% endif %}",
        "</s><|end|>"),
    "a prompt that begins a thought": Family(
        _LOOP + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% set c = m.content %}{% set r = '' %}{% if '</think>' in c %}"
        "{% set r = c.split('</think>')[0].split('<think>')[-1] | trim %}{% set c = c.split('</think>')[-1] | trim %}{% endif %}"
        "{{ '<think>' + r + '</think>\n' + c }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        + _PROMPT + "{{ '<|im_start|>assistant\n<think>' }}{% endif %}", "<|im_end|>", opening="</think>\n"),
    "words, no end, always open": Family(
        _LOOP + "{{ '### ' + m.role + '\n' + m.content + '\n' }}{% endfor %}{{ '### assistant\n' }}", "", apart=True,
        tail="\n### assistant\n"),
    "role tokens, no end, always open": Family(
        "<s>" + _LOOP + "{{ '<|' + m.role + '|>' + m.content }}{% endfor %}{{ '<|assistant|>' }}", "", apart=True, tail="<|assistant|>"),
    "plain": Family("{{ bos_token }}" + PLAIN_TEMPLATE, "</s>"),
}  # fmt: skip

WORDS = [
    "When",
    "does",
    "the",
    "kiosk",
    "open?",
    "It",
    "opens",
    "at",
    "nine.",
    "And",
    "on",
    "Sundays?",
    "At",
    "noon.",
    "Be",
    "brief.",
    "add",
    "them",
    "2+3?",
    "4+4?",
    "5",
    "8",
    "weather",
    "Rain",
    "yes",
    "Oxbay",
    "role",
    "user",
    "assistant",
    "system",
    "tool",
    "name",
    "arguments",
    "city",
    "place",
    "type",
    "function",
    "description",
    "parameters",
    "object",
    "string",
    "question",
]


@functools.lru_cache
def tokenizer_of(kind: str) -> Any:
    """A small tokenizer: `bytes` (byte-level BPE), `sentencepiece` (a blank before every word), `wordpiece`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    options: dict[str, Any] = {"vocab_size": 480, "special_tokens": SPECIAL, "show_progress": False}
    if kind == "bytes":
        built = Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**options, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "sentencepiece":
        built = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        options["special_tokens"] = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(**(options | {"vocab_size": 700}))
    else:
        built = Tokenizer(models.WordPiece(unk_token="<unk>"))
        built.normalizer = normalizers.BertNormalizer(lowercase=True)
        built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        built.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**options)
    built.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    if kind == "sentencepiece":  # bytes are ordinary tokens there
        import json

        described = json.loads(built.to_str())
        described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in SPECIAL]
        built = Tokenizer.from_str(json.dumps(described))
    built.add_tokens([AddedToken(name, special=False, normalized=False) for name in ADDED])
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", built.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def with_template(kind: str, template: str) -> Any:
    """A tokenizer of a kind with a template, as a base is loaded with it."""
    import copy

    from silotune.data.tokenize.chat_template import prepare

    tokenizer = copy.deepcopy(tokenizer_of(kind))
    tokenizer.chat_template = template
    prepare(tokenizer)
    return tokenizer
