"""The token store: equal to encoding row by row, built once for a content, and bounded in memory."""

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from tests.conftest import WORDS, make_tokenizer
from tests.data.helpers import rows_in, write_records

import silotune
from silotune import cache
from silotune.data.read import content
from silotune.data.read.reading import Reading
from silotune.data.silos import corpus
from silotune.data.silos.sources import SiloFiles
from silotune.data.tokenize import store
from silotune.data.tokenize.split import Split
from silotune.data.tokenize.store import open_store
from silotune.data.tokenize.tokens import encode
from silotune.errors import DataError, InputError
from silotune.settings import DataSettings, PoolSettings

RECORDS = [
    {"prompt": "red " * (i % 9 + 1), "completion": "blue stone", "label": "ab"[i % 2], "id": i} for i in range(700)
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_a_store_holds_what_encoding_gives(tmp_path, tokenizer):
    paths = [
        write_records(tmp_path / f"{name}.jsonl", part) for name, part in (("a", RECORDS[:600]), ("b", RECORDS[600:]))
    ]
    held = open_store([str(path) for path in paths], Reading(), tokenizer, 40)
    rows = rows_in(*paths)
    assert held.size == 700 and held.described.labels == ("a", "b")
    assert held.described.unused == {"a.jsonl": ("id",), "b.jsonl": ("id",)}
    chosen = np.array([0, 3, 511, 512, 650])
    split = Split(held, chosen)
    for row, example in zip(chosen, split, strict=True):
        ((expected,),) = encode(tokenizer, [rows[row]], 40)
        assert (example.ids == expected.ids).all() and (example.answered == expected.answered).all()
        assert example.loss_tokens == expected.loss_tokens
    assert split.lengths.tolist() == [len(example.ids) for example in split]
    assert split.tokens == split.lengths.sum() and split.loss_tokens == sum(e.loss_tokens for e in split)
    assert split.text_bytes == sum(rows[row].text_bytes for row in chosen)
    assert held.places[650].tolist() == [1, 51]
    assert [example.ids.tolist() for example in split[1:3]] == [split[1].ids.tolist(), split[2].ids.tolist()]


def test_cut_lost_and_windows_are_counted_by_row(tmp_path, tokenizer):
    long = write_records(tmp_path / "a.jsonl", [
        {"system": "green", "prompt": "red " * 60, "completion": "blue"},
        {"system": "green " * 60, "prompt": "red", "completion": "blue"},
        {"system": "green", "prompt": "red", "completion": "blue"},
        {"system": "green", "prompt": "red", "completion": "blue " * 60},
        {"system": "green", "prompt": "red " * 60, "completion": "blue " * 60},
    ])  # fmt: skip
    held = open_store([str(long)], Reading(), tokenizer, 60)
    split = Split(held, np.arange(5))
    assert (split.rows, len(split), split.cut, split.answer_cut, split.lost) == (5, 4, 2, 2, 1)
    assert [(example.cut, example.answer_cut) for example in split] == [(1, 0), (0, 0), (0, 1), (1, 1)]
    texts = write_records(tmp_path / "t.jsonl", [{"text": "red blue " * 50}, {"text": "red"}])
    windows = Split(open_store([str(texts)], Reading(), tokenizer, 32), np.array([0]))
    assert windows.rows == 1 and len(windows) > 3 and windows.cut == windows.answer_cut == 0


def test_stores_in_use_hold_no_descriptor_and_cannot_be_written(tmp_path, tokenizer):
    path = str(write_records(tmp_path / "a.jsonl", RECORDS[:20]))
    held = [open_store([path], Reading(), tokenizer, length) for length in (20, 30, 40)]
    kept = {entry.resolve() for entry in Path("/proc/self/fd").iterdir()}
    assert not any(path.is_relative_to(tmp_path) for path in kept)
    for array in (held[0].ids, held[0].answered, *(getattr(held[0], name) for name in store.ARRAYS)):
        with pytest.raises(ValueError, match="read-only"):
            array[:1] = array[:1]


def test_a_store_beyond_what_may_be_mapped_writable_is_opened_all_the_same(tmp_path, tokenizer, monkeypatch):
    import torch

    path = str(write_records(tmp_path / "a.jsonl", RECORDS[:20]))
    plain = open_store([path], Reading(), tokenizer, 40)

    def refuse(*_, **__):
        raise RuntimeError("unable to mmap 64 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "from_file", refuse)
    held = open_store([path], Reading(), tokenizer, 40)
    assert (held.ids == plain.ids).all() and (held.places == plain.places).all() and not held.ids.flags.writeable


def test_it_is_built_once_for_a_content(tmp_path, tokenizer, monkeypatch):
    path = write_records(tmp_path / "a.jsonl", RECORDS[:5])
    built = []
    build = store.build
    monkeypatch.setattr(store, "build", lambda folder, read: (built.append(1), build(folder, read)))

    def opened(**changes):
        return open_store([str(changes.get("path", path))], changes.get("reading", Reading()), changes.get("tok", tokenizer), changes.get("length", 40))  # fmt: skip

    opened(), opened(), opened(tok=make_tokenizer())
    assert len(built) == 1
    copy = tmp_path / "elsewhere" / "a.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    opened(path=copy)
    assert len(built) == 1
    (
        opened(length=41),
        opened(reading=Reading(text_rows="line")),
        opened(tok=make_tokenizer("{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}")),
    )
    assert len(built) == 4
    path.write_bytes(path.read_bytes() + b'{"prompt": "q", "completion": "a"}\n')
    assert opened().size == 6 and len(built) == 5


def test_what_is_kept_is_for_its_user_only_and_goes_when_unused(tmp_path, tokenizer):
    path = write_records(tmp_path / "a.jsonl", RECORDS[:5])
    open_store([str(path)], Reading(), tokenizer, 40)
    room = cache.home() / "tokens"
    assert stat.S_IMODE(room.stat().st_mode) == 0o700
    (old,) = (entry for entry in room.iterdir() if entry.is_dir())
    os.utime(old, (1, 1))
    open_store([str(path)], Reading(), tokenizer, 41)
    assert not old.exists() and len([entry for entry in room.iterdir() if entry.is_dir()]) == 1


def test_nothing_is_kept_of_a_file_with_a_bad_row_or_one_that_changes(tmp_path, tokenizer, monkeypatch):
    path = write_records(tmp_path / "a.jsonl", RECORDS[:5])
    path.write_bytes(path.read_bytes() + b"{}")
    with pytest.raises(DataError, match=r"a\.jsonl:6: "):
        open_store([str(path)], Reading(), tokenizer, 40)
    assert not [entry for entry in (cache.home() / "tokens").iterdir() if entry.is_dir()]
    path = write_records(tmp_path / "b.jsonl", RECORDS[:5])
    build = store.build

    def meddle(folder, read):
        build(folder, read)
        path.write_bytes(path.read_bytes() * 2)

    monkeypatch.setattr(store, "build", meddle)
    with pytest.raises(DataError, match="changed while it was read"):
        open_store([str(path)], Reading(), tokenizer, 40)


def test_a_file_that_changes_after_it_was_hashed_poisons_no_cache(tmp_path, tokenizer, monkeypatch):
    path = write_records(tmp_path / "a.jsonl", RECORDS[:50])
    digested = content.content_key

    def meddle(sources, *more):
        key = digested(sources, *more)
        path.write_bytes(path.read_bytes() + path.read_bytes())
        return key

    pool = DataSettings(pool=PoolSettings(train=str(path), law="iid", silos=2))
    silos = [SiloFiles("a", (str(path),), (str(path),))]
    for read in (
        lambda: open_store([str(path)], Reading(), tokenizer, 40),
        lambda: corpus.silos_of(pool, 0),
        lambda: corpus.leaks_of(silos, Reading(), 0.1, 0),
        lambda: corpus.counted_rows(silos[0], Reading()),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(content, "content_key", meddle)
            with pytest.raises(DataError, match=r"a\.jsonl: the file was changed while it was read"):
                read()
        assert not [entry for entry in cache.home().glob("*/*") if entry.is_dir() and entry.parent.name != "tokens"]
        read()
        shutil.rmtree(cache.home())


def test_a_file_that_is_rewritten_with_its_old_date_is_another(tmp_path, tokenizer):
    path = write_records(tmp_path / "a.jsonl", [{"prompt": "red", "completion": "blue"}])
    os.utime(path, (1, 1))
    first = open_store([str(path)], Reading(), tokenizer, 40).digests.tobytes()
    path.write_bytes(path.read_bytes().replace(b"red", b"sea"))
    os.utime(path, (1, 1))
    assert open_store([str(path)], Reading(), tokenizer, 40).digests.tobytes() != first


@pytest.mark.parametrize("where", ["a file", "below a file", "/proc/none", "~nobody-of-this-name/x"])
def test_a_cache_that_cannot_be_written_is_told_in_one_line(tmp_path, tokenizer, monkeypatch, where):
    path = write_records(tmp_path / "a.jsonl", RECORDS[:5])
    (tmp_path / "file").write_text("")
    place = {"a file": str(tmp_path / "file"), "below a file": str(tmp_path / "file" / "x")}.get(where, where)
    monkeypatch.setenv("SILOTUNE_HOME", place)
    with pytest.raises(InputError) as error:
        open_store([str(path)], Reading(), tokenizer, 40)
    assert "SILOTUNE_HOME" in str(error.value) and "\n" not in str(error.value)
    assert where.startswith("~") or str(error.value).startswith(f"{place}/tokens: the cache cannot be written (")


@pytest.mark.parametrize("rows", [5, 700])
def test_a_full_disk_is_told_in_one_line(tmp_path, tokenizer, rows):
    path = write_records(tmp_path / "a.jsonl", RECORDS[:rows])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InputError, match=r"/tokens: the cache cannot be written \(.*\)\. Make room"):
            open_store([str(path)], Reading(), tokenizer, 40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_store([str(path)], Reading(), tokenizer, 40).size == rows


def test_a_template_that_refuses_names_the_file_and_line(tmp_path):
    path = write_records(
        tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}, {"system": "s", "prompt": "q", "completion": "a"}]
    )
    refuses = make_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"a\.jsonl:2: the model's chat template has no place for a system turn\. "):
        open_store([str(path)], Reading(), refuses, 40)


MEMORY = """
import re, sys, threading
from pathlib import Path
from tests.conftest import make_tokenizer
from silotune.data.read.reading import Reading
from silotune.data.tokenize.store import open_store

def held():  # mapped files left out: their pages may go at any time
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

tokenizer = make_tokenizer()
open_store([sys.argv[1]], Reading(), tokenizer, 64)
before, most, over = held(), [0], threading.Event()
def look():
    while not over.wait(0.01):
        most.append(max(most.pop(), held()))
watcher = threading.Thread(target=look)
watcher.start()
open_store([sys.argv[2]], Reading(), tokenizer, 64)
over.set()
watcher.join()
print(most[0] - before)
"""


@pytest.fixture(scope="module")
def many_records():
    random, words = Random(0), WORDS[:17]  # each row another, or the packed ones would be taken for bombs
    return [
        {"prompt": " ".join(random.choices(words, k=500)), "completion": " ".join(random.choices(words, k=50))}
        for _ in range(10_000)
    ]


@pytest.mark.real
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_a_file_of_any_size_is_read_in_bounded_memory(tmp_path, name, many_records):
    """Five times the file costs no more than the index: 60 bytes a row, and the slack of an allocator."""
    small = write_records(tmp_path / f"small{name[1:]}", many_records[:2_000])
    large = write_records(tmp_path / f"large{name[1:]}", many_records)
    roots = [str(Path(__file__).parents[2]), str(Path(silotune.__file__).parents[1])]
    environment = os.environ | {"SILOTUNE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(roots)}
    environment |= {"RAYON_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "2"}  # or each thread keeps a heap of its own
    told = subprocess.run([sys.executable, "-c", MEMORY, str(small), str(large)], capture_output=True, text=True, env=environment, check=True)  # fmt: skip
    grown = int(told.stdout) * 1024
    text = sum(len(json.dumps(record)) for record in many_records)
    assert grown < 28 << 20 < text
