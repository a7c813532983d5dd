"""Every command in the README and in docs/ is run here as it stands, or is said to be run elsewhere, and where.

A block of code without a language holds commands and nothing else; what is no command is a block of `text`, `toml` or
`python`. The commands of the guides for deployments are blocks of `sh`: `test_guides.py` runs them in their order. So no
line is passed over in silence.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
import typer
from tests.real.helpers import PATIENCE

from silotune.cli import app
from silotune.model import embedded
from silotune.recipe import check_recipe

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = ".venv/bin/silotune"

ELSEWHERE = {
    "make demo": "the README's first command; its recipe is that of test_embedded",
    "make test": "this is it",
    "make bench": "benchmarks/speed, whose results are committed",
    "make docs": "tests/test_reference.py",
    "vllm serve": "another project's, which does not run here",
    "llama-server": "likewise",
    "lm_eval": "another project's; tried by hand",
    "transformers serve": "another project's; tried by hand",
    "pip install lm-eval": "likewise",
    "python benchmarks/": "benchmarks, run by hand; their results are committed",
    "python -m benchmarks.": "likewise",
    "tensorboard": "another project's, which would not end; test_trackers.py reads its files",
}
"""Commands by their beginnings, and where they are run, or why not at all."""
SERVERS = ("serve", "watch")


def blocks(language: str) -> list[str]:
    """The blocks of code in one language, in order."""
    found = [
        block
        for page in PAGES
        for named, block in re.findall(r"^```([^\n]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
        if named == language
    ]
    assert found
    return found


def commands() -> list[str]:
    """The commands, in order, each once; lines that end with a backslash go on."""
    lines = (line for block in blocks("") for line in block.replace("\\\n", " ").splitlines())
    words = (re.split(r"(?:^|\s+)# ", line)[0].strip() for line in lines)
    return list(dict.fromkeys(filter(None, words)))


def told_in_sentences() -> list[str]:
    """What stands in running text as code."""
    pages = (re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S) for page in PAGES)
    return [code for page in pages for code in re.findall(r"`([^`\n]+)`", page)]


def runs_here(command: str) -> bool:
    return command.startswith(PROGRAM)


def test_every_command_is_run_here_or_named():
    found = commands()
    assert len(found) > 15
    for command in found:
        assert runs_here(command) or any(command.startswith(start) for start in ELSEWHERE), command
    for start in ELSEWHERE:
        text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
        assert start in text, f"{start}: no longer in the docs"


def test_there_are_no_blocks_of_an_unknown_kind():
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)
        assert set(fences[::2]) <= {"", "sh", "text", "toml", "python", "yaml"} and set(fences[1::2]) <= {""}, page


def options_below(group, above=""):
    """The options of each command, by its name; the name of one that belongs to a group begins with the group's."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from options_below(command, f"{name} ")
        else:
            yield above + name, {opt for param in command.params for opt in param.opts}


def test_commands_and_options_in_sentences_exist():
    options = dict(options_below(typer.main.get_command(app)))
    groups = {name.partition(" ")[0] for name in options if " " in name}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for code in told_in_sentences():
        first, *words = code.split()
        if first == "silotune":
            name = " ".join(words[: 1 + (words[0] in groups)])
            assert name in options and {word for word in words if word.startswith("--")} <= options[name], code
        elif first in options and len(words) and words[0].startswith("--"):
            assert words[0] in options[first], code
        elif first.startswith("--"):
            assert any(first in one for one in options.values()), code
        elif first == "make":
            assert words[0] in targets, code
        elif code.startswith("python -m "):
            assert (ROOT / f"{words[1].replace('.', '/')}.py").exists(), code
        elif code.startswith("python "):
            assert (ROOT / words[0]).exists(), code


def test_examples_of_recipes_are_recipes():
    for block in blocks("toml"):
        check_recipe(tomllib.loads(block), "docs")


@pytest.fixture
def shallow(tmp_path):
    """The embedded model with the first two of its thirty layers: its real tokenizer and template at a quarter of the time.

    The whole model goes through the same commands in test_embedded.py and in `make demo`.
    """
    from transformers import AutoModelForCausalLM

    whole = embedded.embedded()
    folder = tmp_path / "shallow"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    # Such a model does not come to an end of its own: it has room for short answers only.
    shorter = {"num_hidden_layers": 2, "max_position_embeddings": 320}
    AutoModelForCausalLM.from_pretrained(whole, **shorter).save_pretrained(folder)
    return folder


@pytest.mark.timeout(3600)  # a few minutes, and many more where others use the machine
def test_the_commands_work_in_the_order_of_a_reader(tmp_path, shallow):
    """init, check and train as written, but for a smaller base and a shorter training; then all that is done with the run."""
    order = ["init", "check", "train", "compare", "report", "generate", "evaluate", "export", "chat", "watch", "serve"]
    listed = [command for command in commands() if runs_here(command)]
    assert {shlex.split(command)[1] for command in listed} <= set(order)
    (tmp_path / "questions.txt").write_text("When are you open?\nWhere is the key?\n")
    ordered = sorted((shlex.split(command)[1:] for command in listed), key=lambda words: order.index(words[0]))
    run_commands([words for words in ordered if words[0] == "init"], tmp_path)
    recipe = tmp_path / "first" / "recipe.toml"
    text = re.sub(r"^(rounds|steps) = \d+", r"\1 = 2", recipe.read_text(encoding="utf-8"), flags=re.M)
    text, changed = re.subn(r'^base = "smollm2-135m"', f'base = "{shallow}"', text, flags=re.M)
    assert changed == 1
    recipe.write_text(text, encoding="utf-8")
    later = next((tmp_path / "first" / "silos").rglob("train.jsonl"))
    (tmp_path / "later.jsonl").write_text("".join(later.read_text(encoding="utf-8").splitlines(True)[:3]))
    run_commands([words for words in ordered if words[0] not in ("init", *SERVERS)], tmp_path)
    for words in ordered:
        if words[0] in SERVERS:
            serve_for_a_moment(words, tmp_path)
    assert (tmp_path / "runs" / "first" / "compare.json").exists()
    for block in blocks("python"):
        if "OpenAI(" not in block:  # that one is run beside `serve`
            run_python(block.replace("PATH_OR_ID_OF_THE_BASE", str(shallow)), tmp_path)


COMMANDS = """
import io, json, sys
from silotune import cli
for words in json.loads(sys.argv[1]):
    sys.argv, sys.stdin = ["silotune", *words], io.StringIO("hello\\n\\n")
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{words} ended with {ended.code}")
"""


def run_commands(listed: list[list[str]], folder: Path) -> None:
    """Run commands one after another in one process: what the program imports and loads, it does once."""
    run_python(COMMANDS, folder, json.dumps(listed))


def run_python(code: str, folder: Path, *arguments: str) -> None:
    """Run an example as a script of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )  # the test's own limit ends it
    assert done.returncode == 0, f"{code}\n{done.stderr}"


def program(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "silotune.cli", *words]


def serve_for_a_moment(words: list[str], folder: Path) -> None:
    """Start a server on a free port, wait until it answers, and stop it as a user does."""
    free = [*(word for word in words if word not in ("--port", "8000")), "--port", "0"]
    with subprocess.Popen(
        program(free), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        told = re.search(r"http://127\.0\.0\.1:\d+\S*", server.stdout.readline())
        answered = told is not None and answers(
            told.group().removesuffix("/v1") + ("/v1/models" * ("/v1" in told.group()))
        )
        if answered and words[0] == "serve":
            (example,) = (block for block in blocks("python") if "OpenAI(" in block)
            run_python(re.sub(r"http://127\.0\.0\.1:8000/v1", told.group(), example), folder)
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=PATIENCE)
    assert answered, errors
    assert "Traceback" not in errors


def answers(url: str) -> bool:
    """Whether a server that has said where it listens answers there."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
        return bool(reply.status == 200)
