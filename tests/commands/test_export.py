"""`silotune export`: what plain transformers and PEFT make of it, and what is never left half done."""

import json

import pytest
import torch

import silotune
from silotune.data.read.rows import Turn
from silotune.data.tokenize.tokens import encode_prompt
from silotune.errors import ModelError
from silotune.inference import chat
from silotune.model import lora


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


def tuned(run):
    found = chat.of(silotune.open_run(run).folder)
    lora.put(found.tuner.model, found.adapter)
    return found.tuner


def test_a_merged_model_is_the_tuned_one_for_plain_transformers(call, run, tmp_path):
    import transformers

    code, out, err = call("export", run, "--to", "merged", "--out", tmp_path / "merged", "--json")
    assert code == 0 and json.loads(out) == {"to": "merged", "folder": str(tmp_path / "merged")}, err
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged", local_files_only=True)
    resident = tuned(run)
    asked = [{"role": "user", "content": "Where is the key?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert ids == encode_prompt(resident.tokenizer, [Turn("user", "Where is the key?")])
    expected = logits(resident.model, ids)
    assert torch.allclose(logits(model, ids), expected, atol=1e-3)
    with resident.model.disable_adapter():
        assert not torch.allclose(logits(resident.model, ids), expected, atol=0.1)
    said = model.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False)[0, len(ids) :]
    answer = silotune.open_run(run).answer("Where is the key?", sampling=silotune.Sampling(9))
    assert tokenizer.decode(said, skip_special_tokens=True).strip() == answer
    assert tokenizer.eos_token_id in (model.generation_config.eos_token_id, *[model.generation_config.eos_token_id])
    assert model.config.use_cache and not list(tmp_path.glob(".merged-*"))
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "library_name: transformers" in card and "Its logits differ by" in card
    assert (tmp_path / "merged").stat().st_mode & 0o777 == 0o755


def test_an_exported_adapter_is_pefts_with_the_tokenizer_that_it_was_trained_with(call, run, loud_base):
    import peft
    import transformers

    code, out, err = call("export", run, "--to", "adapter")
    folder = run / "export" / "adapter"
    assert code == 0 and out.strip() == str(folder), err
    base = transformers.AutoModelForCausalLM.from_pretrained(loud_base)
    model = peft.PeftModel.from_pretrained(base, folder)
    assert torch.allclose(logits(model, [5, 6, 7]), logits(tuned(run).model, [5, 6, 7]), atol=1e-3)
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template
    same = ("adapter_model.safetensors", "adapter_config.json", "README.md")
    assert all((folder / name).read_bytes() == (run / "adapter" / name).read_bytes() for name in same)


def test_a_model_that_differs_is_not_kept(run, tmp_path, monkeypatch):
    merged = lora.merged

    def wrong(model):
        made = merged(model)
        with torch.no_grad():
            made.model.layers[0].self_attn.q_proj.weight.mul_(1.01)
        return made

    monkeypatch.setattr(lora, "merged", wrong)
    with pytest.raises(ModelError, match="the merged model's logits differ by"):
        silotune.open_run(run).export("merged", tmp_path / "out" / "merged")
    assert not list((tmp_path / "out").iterdir())


def test_an_adapter_that_does_nothing_in_the_merged_model_is_found_out(run, tmp_path, monkeypatch):
    """A merge that forgets the adapter is told, however little the adapter changes."""
    monkeypatch.setattr(lora, "merged", lambda model: model.unload())
    with pytest.raises(ModelError, match="is not kept"):
        silotune.open_run(run).export("merged", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_is_there_already_and_what_cannot_be_written_is_refused(call, run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("x")
    for out, says in (("there", "is there already. Choose another --out"), ("file/below", "cannot be written")):
        code, printed, err = call("export", run, "--to", "merged", "--out", tmp_path / out)
        assert code == 2 and says in err and printed == ""
    code, _, err = call("export", run, "--to", "onnx")
    assert code == 2 and "onnx" in err
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    code, _, err = call("export", run, "--to", "adapter", "--out", tmp_path / "a")
    assert code == 2 and "the adapter cannot be read" in err and not (tmp_path / "a").exists()


def test_a_base_without_a_template_and_one_that_asks_the_date_keep_trainings_tokens(make_recipe, tmp_path):
    import transformers
    from tests.conftest import TEMPLATE, make_model

    dated = "{{ '<|im_start|>system\\n' + strftime_now('%d %b %Y') + '<|im_end|>\\n' }}" + TEMPLATE
    for number, template in enumerate((None, dated)):
        base = make_model(tmp_path / f"base{number}", template=template)
        run = silotune.train(make_recipe(model={"base": str(base)}), out=tmp_path / f"run{number}")
        for form in ("adapter", "merged"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(run.export(form))
            ids = tokenizer.apply_chat_template([{"role": "user", "content": "Where?"}], add_generation_prompt=True)
            trained = encode_prompt(chat.of(run.folder).tuner.tokenizer, [Turn("user", "Where?")])
            assert ids["input_ids"] == trained


def test_a_converter_goes_with_gguf_alone_and_one_that_fails_leaves_nothing(call, run, tmp_path):
    (tmp_path / "fails.py").write_text("raise SystemExit('no such tokenizer')")
    for arguments, says in (
        (("--to", "merged", "--converter", tmp_path / "fails.py"), "--converter goes with --to gguf"),
        (("--to", "gguf", "--converter", tmp_path / "none.py"), "none.py: no such file. Give llama.cpp's convert_hf_to_gguf.py"),
        (("--to", "gguf", "--converter", tmp_path / "fails.py"), "cannot write this model (no such tokenizer)"),
    ):  # fmt: skip
        code, out, err = call("export", run, *arguments, "--out", tmp_path / "out" / "new")
        assert code == 2 and says in err and out == "", err
    assert not list((tmp_path / "out").iterdir())


def test_every_form_says_the_end_of_turn_that_the_base_does_not_know(make_recipe, tmp_path, call):
    import transformers
    from tests.conftest import TEMPLATE, make_model

    folder = make_model(tmp_path / "base", template=TEMPLATE.replace("<|im_end|>", "<|endoftext|>"))
    run = silotune.train(make_recipe(model={"base": str(folder)}), out=tmp_path / "run")
    tokenizer = chat.of(run.folder).tuner.tokenizer
    ends = sorted(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    for written in (run.folder.adapter, run.export("adapter"), run.export("merged")):
        assert transformers.GenerationConfig.from_pretrained(written).eos_token_id == ends
        card = (written / "README.md").read_text()
        assert f"An answer ends with `<|endoftext|>` (token {ends[0]}) or `<|im_end|>` (token {ends[1]})." in card
    assert (run.folder.adapter / "chat_template.jinja").read_text() == tokenizer.chat_template
    merged = transformers.AutoModelForCausalLM.from_pretrained(run.path / "export" / "merged")
    said = merged.generate(torch.tensor([[5, 6]]), max_new_tokens=40, do_sample=False, prefix_allowed_tokens_fn=lambda _, ids: [
        7 if len(ids) < 5 else ends[0]])  # fmt: skip
    assert said[0].tolist() == [5, 6, 7, 7, 7, ends[0]]


def test_an_end_of_turn_in_words_is_a_stop_text_everywhere(make_recipe, tmp_path):
    import transformers
    from tests.conftest import make_model

    template = (
        "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n### End\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
    )
    folder = make_model(tmp_path / "base", template=template)
    run = silotune.train(make_recipe(model={"base": str(folder)}), out=tmp_path / "run")
    assert transformers.GenerationConfig.from_pretrained(run.folder.adapter).stop_strings == ["### End"]
    card = (run.folder.adapter / "README.md").read_text()
    assert 'or the text "### End".' in card and "do_sample=False, tokenizer=tokenizer)" in card
