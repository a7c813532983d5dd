"""`silotune export --to gguf` with llama.cpp's own converter, on models that have the embedded model's tokenizer."""

import pytest
from tests.conftest import make_model

import silotune
from silotune.errors import ModelError
from silotune.model import base

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def known_tokenizer():
    return base.load_tokenizer(base.locate("smollm2-135m"))


@pytest.fixture
def run(make_recipe, tmp_path, known_tokenizer):
    folder = make_model(tmp_path / "known", vocab_size=len(known_tokenizer), initializer_range=0.3)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    known_tokenizer.save_pretrained(folder)
    recipe = make_recipe(model={"base": str(folder)}, training={"rounds": 1, "learning_rate": 0.1})
    return silotune.train(recipe, out=tmp_path / "run")


def test_a_run_becomes_a_gguf_file_that_is_a_base_again(run, make_recipe, tmp_path):
    folder = run.export("gguf")
    (file,) = folder.glob("*.gguf")
    assert file.name == "test-f32.gguf" and {entry.name for entry in folder.iterdir()} == {file.name, "README.md"}
    assert "makes the same tokens" in (folder / "README.md").read_text()
    again = silotune.train(make_recipe(model={"base": str(file)}, training={"rounds": 1}), out=tmp_path / "again")
    asked, sampling = "Where is the key?", silotune.Sampling(12)
    assert again.answer(asked, sampling=sampling, base=True) == run.answer(asked, sampling=sampling)
    assert run.answer(asked, sampling=sampling) != run.answer(asked, sampling=sampling, base=True)


def test_a_tokenizer_that_the_converter_does_not_know_is_refused(make_recipe, tmp_path):
    run = silotune.train(make_recipe(), out=tmp_path / "run")
    with pytest.raises(ModelError, match=r"llama\.cpp's converter cannot write this model"):
        run.export("gguf")
    assert not (run.path / "export" / "gguf").exists()


def test_the_file_says_an_end_of_turn_that_is_not_the_end_of_sequence(make_recipe, tmp_path, known_tokenizer):
    from gguf import GGUFReader

    folder = make_model(tmp_path / "known", vocab_size=len(known_tokenizer), initializer_range=0.3)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    known_tokenizer.save_pretrained(folder)
    other = base.load_tokenizer(str(folder))
    other.eos_token = "<|endoftext|>"
    other.save_pretrained(folder)
    run = silotune.train(make_recipe(model={"base": str(folder)}, training={"rounds": 1}), out=tmp_path / "run")
    (file,) = run.export("gguf").glob("*.gguf")
    fields = GGUFReader(file).fields
    said = {key: int(fields[f"tokenizer.ggml.{key}_token_id"].contents()) for key in ("eos", "eot")}
    assert said == {
        key: other.convert_tokens_to_ids(name) for key, name in (("eos", "<|endoftext|>"), ("eot", "<|im_end|>"))
    }
    assert "`<|im_end|>` (token 2)" in (file.parent / "README.md").read_text()
