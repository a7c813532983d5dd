"""The embedded model: fetched once, quick from then on, tuned on the demo's silos, and loaded by plain PEFT."""

import json
import subprocess
import sys

import psutil
import pytest

import silotune
from silotune.demo import RECIPE
from silotune.model import base

pytestmark = pytest.mark.real


def test_the_tuned_adapter_gives_the_same_logits_in_plain_peft(tmp_path):
    silos = [str(RECIPE.parent / "silos" / name) for name in ("bank", "clinic")]
    changes = [
        f"data.silos={json.dumps(silos)}",
        "federation.engine=inline",
        "training.rounds=1",
        "training.steps=4",
        "training.batch=2",
        "evaluation.every=0",
        "report.samples=0",
    ]
    run = silotune.train(RECIPE, out=tmp_path / "run", overrides=changes)
    first, last = (line["evaluation"]["loss"] for line in run.metrics() if line["silo"] is None)
    assert last < first - 0.5

    import torch

    from silotune.inference.samples import load

    resident = load(run.folder)
    ids = resident.tokenizer("Where is the Green Leaf form?")["input_ids"]
    with torch.no_grad():
        expected = resident.model(input_ids=torch.tensor([ids])).logits[0, -1]
    code = (
        "import json, sys, torch; torch.set_num_threads(1); from transformers import AutoModelForCausalLM; from peft import PeftModel\n"
        f"m = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base.locate('smollm2-135m')!r}), {str(run.folder.adapter)!r})\n"
        f"print(json.dumps(m(input_ids=torch.tensor([{ids}])).logits[0, -1].tolist())); assert 'silotune' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert torch.allclose(torch.tensor(json.loads(done.stdout.splitlines()[-1])), expected, rtol=1e-4, atol=1e-3)

    # the base's own voice: it knows no Larkmoss Clinic, speaks English, and stops at the end of its turn
    answer = run.answer("What is the capital of France?", base=True, sampling=silotune.Sampling(max_tokens=40))
    assert "Paris" in answer


def test_the_cached_model_loads_without_network_and_with_its_template():
    folder = base.locate("smollm2-135m")
    code = (
        "import os; os.environ.update(PIP_NO_INDEX='1', PIP_FIND_LINKS='/nonexistent', HF_HUB_OFFLINE='1')\n"
        "from silotune.model import base, stored; p = base.locate('smollm2-135m'); t = base.load_tokenizer(p)\n"
        "base.load_model(p, base.place('cpu', 'auto')); print(stored.describe(p, t).bytes, '<|im_start|>' in t.chat_template, p)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["538060032", "True", folder]


HOLD = """
import sys, torch
torch.set_num_threads(1)
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings
resident = tuner("smollm2-135m", LoraSettings(), place("cpu", "auto"))
with torch.no_grad():
    resident.model(input_ids=torch.arange(3, 60)[None])  # every page of the base has been read
print("ready", flush=True)
sys.stdin.readline()
"""


def test_two_processes_share_the_pages_of_the_base():
    held = []

    try:
        for _ in range(2):
            held.append(subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))  # fmt: skip
            assert held[-1].stdout.readline() == "ready\n"
        memory = [psutil.Process(process.pid).memory_full_info() for process in held]
        # a page that n processes share counts 1/n in each one's proportional size; alone, one would hold its whole
        assert sum(one.pss for one in memory) < 1.5 * memory[0].rss
    finally:
        for process in held:
            process.communicate()
