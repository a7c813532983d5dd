"""Every command in the README and in docs/ is run here as it stands, or is said to be run elsewhere, and where."""

import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = ".venv/bin/silotune"

ELSEWHERE = {
    "make demo": "the README's first command; its recipe is that of test_embedded",
    "make test": "this is it",
    "make bench": "benchmarks/speed, whose results are committed",
    "make docs": "tests/test_reference.py",
    "flower-supernode": "test_engines.py, with its own certificates and ports",
    "flwr run": "test_engines.py, likewise",
    "export SILOTUNE_SILOS": "test_engines.py sets it",
    "vllm serve": "another project's, which does not run here",
    "llama-server": "likewise",
    "lm_eval": "another project's; tried by hand",
    "transformers serve": "another project's; tried by hand",
    "pip install lm-eval": "likewise",
    "python benchmarks/": "benchmarks, run by hand; their results are committed",
    "python -m benchmarks.": "likewise",
}
"""Commands by their beginnings, and where they are run, or why not at all."""
SERVERS = ("serve", "watch")


def commands() -> list[str]:
    """The commands in blocks of code, in order, each once; lines that end with a backslash go on."""
    found: dict[str, None] = {}
    for page in PAGES:
        for block in re.findall(r"^```(?:sh)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.split("   #")[0].split("  #")[0].strip()
                if re.match(
                    r"(\.venv/|make |flwr |flower-|export |vllm |llama-|transformers |python |lm_eval |pip )", words
                ):
                    found[words] = None
    return list(found)


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


def test_the_commands_work_in_the_order_of_a_reader(tmp_path):
    """init, check and train as written, but for a shorter training; then everything that is done with the run."""
    order = ["init", "check", "train", "compare", "report", "generate", "evaluate", "export", "chat", "watch", "serve"]
    listed = [command for command in commands() if runs_here(command)]
    assert {shlex.split(command)[1] for command in listed} <= set(order)
    (tmp_path / "questions.txt").write_text("When are you open?\nWhere is the key?\n")
    for command in sorted(listed, key=lambda command: order.index(shlex.split(command)[1])):
        words = shlex.split(command)[1:]
        if words[0] in SERVERS:
            serve_for_a_moment(words, tmp_path)
            continue
        done = subprocess.run(
            program(words), cwd=tmp_path, input="hello\n\n", capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if words[0] == "init":
            recipe = tmp_path / "first" / "recipe.toml"
            text = re.sub(r"^(rounds|steps) = \d+", r"\1 = 2", recipe.read_text(encoding="utf-8"), flags=re.M)
            recipe.write_text(text, encoding="utf-8")
            later = next((tmp_path / "first" / "silos").rglob("train.jsonl"))
            (tmp_path / "later.jsonl").write_text("".join(later.read_text(encoding="utf-8").splitlines(True)[:3]))
    assert (tmp_path / "runs" / "first" / "compare.json").exists()


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
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    assert answered, errors
    assert "Traceback" not in errors


def answers(url: str) -> bool:
    """Whether a server that has said where it listens answers there."""
    with urllib.request.urlopen(url, timeout=60) as reply:
        return bool(reply.status == 200)
