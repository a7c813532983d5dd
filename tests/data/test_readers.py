"""Reading: what goes in comes out equal from every format, and what cannot be used is refused in one message."""

import gzip
import json
import os
import random
import resource
import signal
import string
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.helpers import rows_in, write_records

from silotune.data.read import files, json_reader, parquet_reader, table_reader, text_reader
from silotune.data.read.reading import Reading, read_rows
from silotune.data.read.rows import Turn
from silotune.errors import DataError

FORMATS = [
    "a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.tsv.gz",
]  # fmt: skip
AWKWARD = [
    "plain", "two\nlines", "\r\nwindows\r\n", "a\u2028b\u0085c", "emoji 👩‍⚕️ and 🇨🇭", "שלום עולם", "zero\u200bwidth\u200d",
    'quotes " and \' and ""', "tab\there", "comma, semicolon; pipe |", "  kept blanks  ", "\ufeffmark inside", "\\n \\u0041",
    "nan", "null", "0123", "=1+1", "<|im_end|>", "é e\u0301", "\U0001d54f",
]  # fmt: skip
FORTY = [
    {"instruction": f"{number}: {AWKWARD[number % len(AWKWARD)]}", "response": AWKWARD[(number * 7 + 3) % len(AWKWARD)],
     "label": ("yes", "no")[number % 2]} for number in range(40)
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_forty_rows_in_every_format(tmp_path, name):
    rows = rows_in(write_records(tmp_path / name, FORTY))
    assert [(row.turns[0].content, row.turns[1].content, row.label) for row in rows] == [
        (record["instruction"], record["response"], record["label"]) for record in FORTY
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_texts_by_document_paragraph_and_line(tmp_path, name):
    data = b"\n first line\nsecond\n\n  \nthird\r\n\nlast"
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    expected = {
        "document": ["\n first line\nsecond\n\n  \nthird\r\n\nlast"],
        "paragraph": [" first line\nsecond", "third", "last"],
        "line": [" first line", "second", "third", "last"],
    }
    for text_rows, texts in expected.items():
        found = rows_in(path, text_rows=text_rows)
        assert [row.text for row in found] == texts, text_rows
    assert [row.line for row in rows_in(path, text_rows="paragraph")] == [2, 6, 8]


# --------------------------------------------------------------------------------------------- refusals

GOOD = b'{"prompt": "q", "completion": "a"}\n'
REFUSED = [
    # name, bytes, what the message says after the file's name
    ("a.jsonl", b"", ": the file holds no rows."),
    ("a.jsonl", b" \n\n", ": the file holds no rows."),
    ("a.csv", b"prompt,completion\n", ": the file holds no rows."),
    ("a.txt", b" \n \n", ": the file holds no rows."),
    ("a.json", b"[]", ": the file holds no rows."),
    ("a.jsonl", GOOD + b'{"prompt": "q", "compl', ":2: not valid JSON (column 17): unterminated string starting at."),
    ("a.jsonl", GOOD + b'{"prompt" "q"}', ":2: not valid JSON (column 11): expecting ':' delimiter."),
    ("a.jsonl", GOOD.strip() + b" " + GOOD, ":1: text after the end of the row (column 35). Two objects stand on one line"),
    ("a.jsonl", b'"text"\n', ":1: a row must be a JSON object with fields, not text."),
    ("a.jsonl", b"42\n", ":1: a row must be a JSON object with fields, not a number."),
    ("a.jsonl", GOOD + b'{"text": "t"}\n', ":2: field 'prompt' is missing; the rows before are prompt/completion."),
    ("a.jsonl", b'{"prompt": "q", "completion": 42}', ":1: field 'completion' must be text, not a number."),
    ("a.jsonl", b'{"prompt": "q", "completion": null}', ":1: field 'completion' must be text, not null."),
    ("a.jsonl", b'{"prompt": ["q"], "completion": "a"}', ":1: field 'prompt' must be text, not a list."),
    ("a.jsonl", b'{"prompt": {"q": 1}, "completion": "a"}', ":1: field 'prompt' must be text, not an object."),
    ("a.jsonl", b'{"prompt": true, "completion": "a"}', ":1: field 'prompt' must be text, not true or false."),
    ("a.jsonl", b'{"prompt": "q", "completion": ""}', ":1: field 'completion' is blank."),
    ("a.jsonl", b'{"prompt": "q", "completion": " \\n\\t "}', ":1: field 'completion' is blank."),
    ("a.jsonl", b'{"prompt": "q", "completion": "a\\u0000"}', ":1: field 'completion' has a NUL character."),
    ("a.jsonl", b'{"prompt": "q", "completion": "\\ud800"}', ":1: field 'completion' has half of a surrogate pair."),
    ("a.jsonl", GOOD + b'{"prompt": "q\x00", "completion": "a"}', ":2: a NUL byte (column 14). Save the file as UTF-8 text."),
    ("a.jsonl", GOOD + b'{"prompt": "\xff", "completion": "a"}', ":2: not UTF-8 (byte 13 of the line)."),
    ("a.jsonl", GOOD.decode().encode("utf-16"), ": the file is UTF-16 or UTF-32. Save it as UTF-8."),
    ("a.jsonl", GOOD.decode().encode("utf-16-le"), ": the file is UTF-16 or UTF-32. Save it as UTF-8."),
    ("a.csv", "prompt,completion\nq,a\n".encode("utf-16-be"), ": the file is UTF-16 or UTF-32. Save it as UTF-8."),
    ("a.json", ("[" + GOOD.decode() + "]").encode("utf-16-le"), ": the file is UTF-16 or UTF-32. Save it as UTF-8."),
    ("a.jsonl", gzip.compress(GOOD), ": the file is packed with gzip. Let its name end with .gz."),
    ("a.json", b'{\n "prompt": "q",\n "completion": "a"\n}\n', ":1: not valid JSON (column 2): expecting property name "
     "enclosed in double quotes. Put each object on one line, or all of them in one array"),
    ("a.csv", b"prompt,completion\rq,a\r", ":1: not a sound table (lines end with \\r alone, as on old Macs"),
    ("a.tsv", b"prompt\tcompletion\nq\ta\tb\n", ":2: 3 columns, the header has 2. Quote what holds tabs."),
    ("a.jsonl", b'{"prompt": "q", "prompt": "r", "completion": "a"}', ":1: a field stands twice in the row."),
    ("a.jsonl", b'{"prompt": "q", "completion": "a", "n": 1e999}', ":1: a number of absurd size."),
    ("a.jsonl", b'{"prompt": "q", "completion": "a", "n": ' + b"9" * 5000 + b"}", ":1: a number of absurd size."),
    ("a.jsonl", b'{"prompt": "q", "completion": "a", "n": NaN}', ":1: NaN is not JSON."),
    ("a.jsonl", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ":1: nested too deeply."),
    ("a.jsonl", b'{"zebra": "q", "giraffe": "a"}', ":1: no shape of row has these fields (2 of other names)."),
    ("a.jsonl", b'{"prompt": "q"}', ":1: no shape of row has these fields (prompt)."),
    ("a.jsonl", b'{"text": "t", "prompt": "q", "completion": "a"}', ":1: the fields fit two shapes (text and prompt + completion)."),
    ("a.jsonl", b'{"prompt": "q", "completion": "a", "label": 1.5}', ":1: field 'label' must be text or a whole number"),
    ("a.json", b'[{"prompt": "q", "completion": "a"}', ":1: the array has no end; the file is cut short."),
    ("a.json", b'[{"prompt": "q", "completion": "a"},\n]', ":2: a comma before the end of the array."),
    ("a.json", b'[{"prompt": "q", "completion": "a"}\n{"prompt": 1}]', ":2: a comma or ] should follow the row before."),
    ("a.json", b'[{"prompt": "q", "completion": "a"}] more', ":1: text after the end of the array."),
    ("a.json", b'[1]', ":1: a row must be a JSON object with fields, not a number."),
    ("a.json", b'[\n{"prompt": "q",\n "comp', ":3: not valid JSON"),
    ("a.json", b'[{"prompt": "\xff"}]', ":1: not UTF-8."),
    ("a.csv", b"prompt,,completion\nq,x,a\n", ":1: column 2 of the header has no name."),
    ("a.csv", b"prompt,completion,prompt\nq,a,r\n", ":1: columns 1 and 3 of the header have one name."),
    ("a.csv", b"prompt,completion\nq\n", ":2: 1 columns, the header has 2."),
    ("a.csv", b'prompt,completion\n"a\nb",c\nq,a,x\n', ":4: 3 columns, the header has 2."),
    ("a.csv", b'prompt,completion\nq,"a\n', ":2: not a sound table (a quote is never closed)."),
    ("a.csv", b'prompt,completion\nq,"a"b\n', ":2: not a sound table (text after a closing quote)."),
    ("a.csv", b"prompt;completion\nq;a\n", ":1: the header is one column with ';' in it; columns must be split by commas."),
    ("a.csv", b"prompt,completion\nq,\n", ":2: field 'completion' is blank."),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ": the file is a pointer of Git LFS, not the file "
     "itself. Fetch it with: git lfs pull"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ": the file is a pointer of Git LFS"),
    ("a.txt", b"\n<!DOCTYPE html>\n<html><body>404</body></html>", ": the file is a web page (HTML). It may be an error page"),
    ("a.txt", b"<?xml version='1.0'?>\n<!DOCTYPE html>", ": the file is a web page (HTML)."),
    ("a.txt", b"<head><title>404</title>", ": the file is a web page (HTML)."),
    ("a.txt", b"\n%PDF-1.4\n", ": the file is a PDF."),
    ("a.txt", b"PK\x05\x06" + 18 * b"\0", ": the file is a ZIP archive."),
    ("a.txt", b"RIFF\x10\0\0\0WEBPVP8 ", ": the file is a picture (WEBP)."),
    ("a.csv", b"<html lang='en'><head></head></html>", ": the file is a web page (HTML)."),
    ("a.parquet", b"<!doctype HTML><p>", ": the file is a web page (HTML)."),
    ("a.txt", b"%PDF-1.7\n%\xe2\xe3\n1 0 obj", ": the file is a PDF. Take the text out of it first."),
    ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", ": the file is a picture (PNG). Give text."),
    ("a.txt", b"\xff\xd8\xff\xe0\x00\x10JFIF", ": the file is a picture (JPEG)."),
    ("a.json", b"PK\x03\x04\x14\x00\x00\x00\x08\x00[Content_Types].xml word/document.xml", ": the file is a Word document (DOCX). Save"),
    ("a.csv", b"PK\x03\x04\x14\x00xl/workbook.xml", ": the file is an Excel workbook (XLSX). Save its sheet as CSV."),
    ("a.jsonl", b"PK\x03\x04\x14\x00train.jsonl", ": the file is a ZIP archive. Unpack it."),
    ("a.txt", b"{\\rtf1\\ansi", ": the file is a document in RTF."),
    ("a.jsonl", b"SQLite format 3\x00", ": the file is a database (SQLite)."),
    ("a.txt", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00", ": the file is a document of an old Office."),
    ("a.jsonl", b"PAR1\x15\x04", ": the file is Parquet. Let its name end with .parquet."),
    ("a.txt", b"a/train.txt" + b"\x00" * 246 + b"ustar\x0000", ": the file is an archive (tar)."),
    ("a.jsonl", b"\xfd7zXZ\x00\x00", ": the file is packed with xz."),
    ("a.parquet", b"PAR1 this is none PAR1", ": not a sound Parquet file"),
    ("a.jsonl.gz", gzip.compress(GOOD * 500)[:-12], ": the gzip file is cut short. Copy it again."),
    ("a.jsonl.gz", GOOD, ": not a sound gzip file."),
    ("a.jsonl.gz", b"<!doctype html>", ": the file is a web page (HTML)."),
    ("a.txt.gz", gzip.compress(b"%PDF-1.4"), ": the file is a PDF."),
    ("a.jsonl", b'{"Prompt": "q", "completion ": "a"}', ":1: no shape of row has these fields (2 of other names). Names are in "
     "small letters and without blanks around them: rename 'Prompt' (prompt), 'completion ' (completion)."),
    ("a.jsonl", b'{"prompt": "q", "completion": "a", "System": "s"}', ":1: field 'System' is not read as 'system'."),
    ("a.jsonl", GOOD + b'{"prompt": "q", "completion": "a", " input": "s"}', ":2: field ' input' is not read as 'input'."),
    ("a.csv.gz", gzip.compress(b"prompt,completion\n" + (b"q," + b"a" * 999 + b"\n") * 90_000), ": unpacks to more than"),
    ("a.xlsx", b"PK", ": no known format of rows. Use .jsonl, .json, .csv, .tsv, .txt"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "says"), REFUSED, ids=[f"{n}{s[:40]}" for n, _, s in REFUSED])
def test_refusals_name_file_line_and_field(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        rows_in(path)
    message = str(error.value)
    assert message.startswith(f"{path}{says}"), message
    assert "\n" not in message and len(message) < 500
    for private in ("zebra", "giraffe", "unterminated string q"):
        assert private not in message


def turn(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "must be a list with at least a user and an assistant turn"),
        ("hello", "must be a list"),
        ([turn("assistant", "a")], "messages[0]: the role must be system or user here"),
        ([turn("user", "q"), turn("user", "q")], "messages[1]: the role must be assistant here"),
        ([turn("user", "q"), turn("system", "s")], "messages[1]: the role must be assistant here"),
        ([turn("system", "s"), turn("assistant", "a")], "messages[1]: the role must be user here"),
        ([turn("user", "q")], "the last turn must be the assistant's"),
        ([turn("user", "q"), turn("assistant", " ")], "messages[1]: field 'content' is blank"),
        ([turn("user", "q"), turn("assistant", None)], "messages[1]: field 'content' must be text, not null"),
        ([turn("user", "q"), {"role": "assistant"}], "messages[1]: must be an object with 'role' and 'content'"),
        ([turn(3, "q")], "messages[0]: 'role' must be text, not a number"),
        ([turn("tool", "q")], "messages[0]: the role must be system or user here"),
    ],
)
def test_conversations_out_of_order_are_refused(tmp_path, messages, says):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": messages}))
    with pytest.raises(DataError) as error:
        rows_in(path)
    assert says in str(error.value) and str(error.value).startswith(f"{path}:1: ")


def test_what_is_no_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "none.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    for name, says in (
        ("fifo", "a FIFO, not a file"), ("folder", "a folder, not a file"), ("loop", "a link that leads back to itself"),
        ("nowhere", "no such file (a link to nothing)"), ("device", "a device, not a file"), ("none", "no such file."),
    ):  # fmt: skip
        with pytest.raises(DataError) as error:
            rows_in(tmp_path / f"{name}.jsonl")
        assert says in str(error.value)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "open", denied)
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        rows_in(path)


def test_a_file_below_a_folder_that_may_not_be_entered_is_refused(tmp_path, monkeypatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.Path, "stat", denied)
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        rows_in(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a\0.jsonl", "\ud800.jsonl", "x" * 300 + ".jsonl"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    with pytest.raises(DataError) as error:
        rows_in(tmp_path / name)
    assert str(error.value).isprintable()


def test_parquet_refusals(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = write_records(tmp_path / "a.parquet", FORTY)
    whole = path.read_bytes()
    for data in (whole[:-200], whole[: len(whole) // 2], whole[:4] + b"\0" * 500 + whole[504:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="not a sound Parquet file"):
            rows_in(path)
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "prompt"]), path)
    with pytest.raises(DataError, match="columns 1 and 3 have one name"):
        rows_in(path)
    pq.write_table(pa.table({"prompt": ["q", None], "completion": ["a", "b"]}), path)
    with pytest.raises(DataError, match=r"row 2: field 'prompt' must be text, not null"):
        rows_in(path)
    pq.write_table(pa.table({"text": ["x" * (1 << 20)] * 400}), path, use_dictionary=False, compression="zstd")
    with pytest.raises(DataError, match="more than 200 times its size"):
        rows_in(path)


def one_text_pointed_at(path, size, rows, inside=None):
    """A small Parquet file of many rows that share one long text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    indices = pa.array(np.zeros(rows, np.int32))
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * size]))
    if inside == "list":
        texts = pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), texts)
    elif inside == "messages":
        turns = pa.StructArray.from_arrays([texts, texts], ["role", "content"])
        texts = pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), turns)
    pq.write_table(
        pa.table({inside or "text": texts}),
        path,
        compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=1 << 27,
    )
    assert path.stat().st_size < 20_000
    return path


@pytest.mark.parametrize(
    ("size", "rows", "inside", "says"),
    [
        (1 << 20, 60_000, None, "unpacks to more than 64 MiB, more than 200 times its size"),
        (50 << 20, 64, None, ": row 1: the row is longer than 16 MiB"),
        (1 << 20, 60_000, "list", ": row 1: the row is longer than 16 MiB"),
        (1 << 20, 60_000, "messages", ": row 1: the row is longer than 16 MiB"),
    ],
)
def test_parquet_that_points_at_one_text_again_and_again_is_refused(tmp_path, size, rows, inside, says):
    path = one_text_pointed_at(tmp_path / "a.parquet", size, rows, inside)
    with in_bounds(), pytest.raises(DataError) as error:
        rows_in_turn(path)
    assert says in str(error.value)


def test_a_column_that_python_has_no_value_for_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    for column in (pa.array([2**60], pa.timestamp("ms")), pa.array([1], pa.timestamp("s", "Mars/Olympus"))):
        pq.write_table(pa.table({"text": ["t"], "when": column}), path)
        with pytest.raises(DataError, match=r"row 1: column 'when' holds a value of type timestamp.* Leave the column"):
            rows_in(path)
    pq.write_table(pa.table({"text": [b"t"]}), path)
    with pytest.raises(DataError, match="field 'text' must be text, not binary data"):
        rows_in(path)


def test_parquet_with_categories_maps_and_lists_of_lists_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, count = tmp_path / "a.parquet", 3000
    turns = [{"role": "user", "content": "q" * 50}, {"role": "assistant", "content": "a"}]
    pq.write_table(
        pa.table(
            {
                "messages": [turns] * count,
                "label": pa.array([f"{i % 9}" * 90 for i in range(count)]).dictionary_encode(),
                "note": pa.array([f"{i % 9}" * 9000 for i in range(count)]).dictionary_encode(),
                "map": pa.array([[("k", "v")], None, []] * (count // 3), pa.map_(pa.string(), pa.string())),
                "deep": pa.array([[["a", None], []], None, [None, ["b"]]] * (count // 3)),
                "pair": pa.array([["a", "b"]] * count, pa.list_(pa.string(), 2)),
            }
        ),
        path,
    )
    rows = rows_in(path)
    assert len(rows) == count and {row.turns for row in rows} == {(Turn("user", "q" * 50), Turn("assistant", "a"))}
    assert rows[4].label == "4" * 90


LONG = "a" * 700
TOO_LONG = [
    # name, bytes, line of the row that is longer than 1000 bytes
    ("a.jsonl", GOOD + b'{"prompt": "q", "completion": "' + b"a" * 2000 + b'"}', 2),
    ("b.txt", b"a" * 2000, 1),
    ("c.txt", b"a\n" * 700, 1),
    ("d.txt", "\u00e9".encode() * 700, 1),
    ("e.csv", f'prompt,completion\nq,a\n"{LONG}\n","{LONG}\n"\n'.encode(), 3),
    ("f.csv", b'prompt,completion\nq,"a\n' + b"q,a\n" * 400, 2),
    ("g.json", json.dumps([{"prompt": "q", "completion": "a"}, {"prompt": LONG, "completion": LONG}], indent=0).encode(), 6),
    ("h.json", b'[{"prompt": "q", "completion": "' + "\u00e9".encode() * 700 + b'"}]', 1),
    ("i.json", b'[{"prompt": "q", "completion": "' + b"a" * (3 << 20) + b'"}]', 1),
    ("j.parquet", [{"prompt": LONG, "completion": LONG}], 1),
    ("k.parquet", [{"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": LONG}]}], 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "line"), TOO_LONG, ids=[name for name, _, _ in TOO_LONG])
def test_a_row_that_is_too_long_is_refused(tmp_path, monkeypatch, name, data, line):
    path = tmp_path / name
    path.write_bytes(data) if isinstance(data, bytes) else write_records(path, data)
    for module in (files, json_reader, table_reader, text_reader, parquet_reader):
        monkeypatch.setattr(module, "MOST_ROW", 1000)
    with pytest.raises(DataError) as error:
        rows_in(path)
    place = f"{path}: row {line}" if name.endswith("parquet") else f"{path}:{line}"
    assert str(error.value).startswith(f"{place}: the row is longer than "), str(error.value)


@pytest.mark.parametrize(
    ("name", "start", "part", "end"),
    [("a.csv", b"prompt,completion\nq,", b'"' + (b"a" * 1023 + b"\n") * 2048 + b'",', b'"a"\n'), ("a.json", b"[[", b'"' + b"a" * (2 << 20) + b'",', b"1]]")],
)  # fmt: skip
def test_a_row_of_many_long_fields_is_refused_in_bounded_memory(tmp_path, name, start, part, end):
    path = tmp_path / name
    path.write_bytes(start + part * 50 + end)
    with in_bounds(), pytest.raises(DataError, match="the row is longer than 16 MiB"):
        rows_in_turn(path)


def test_an_error_in_an_array_is_told_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr(json_reader._Blocks, "more", counted := Counted(json_reader._Blocks.more))
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"prompt" 1},' + b" " * (8 << 20))
    with pytest.raises(DataError, match=r"a\.json:1: not valid JSON: expecting ':' delimiter"):
        rows_in(path)
    assert counted.calls == 1


class Counted:
    """A method that counts how often it is called."""

    def __init__(self, method):
        self.method, self.calls = method, 0

    def __get__(self, instance, _):
        def call(*arguments):
            self.calls += 1
            return self.method(instance, *arguments)

        return call


def test_a_wide_table_is_read_in_time(tmp_path):
    names = [f"column {number}" for number in range(60_000)] + ["text"]
    path = tmp_path / "a.csv"
    path.write_text(f"{','.join(names)}\n{'x,' * 60_000}t\n")
    with in_bounds(seconds=5):
        assert [row.text for row in rows_in(path)] == ["t"]
        path.write_text(f"{','.join(names)},column 7\n")
        with pytest.raises(DataError, match="columns 8 and 60002 of the header have one name"):
            rows_in(path)


# ------------------------------------------------------------------------------------------- read right


def test_marks_line_ends_and_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.strip() + b"\r\n\r\n" + GOOD.strip())
    assert [row.line for row in rows_in(path)] == [1, 3]
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,completion\r\nq,a\r\n\r\nr,b")
    assert [(row.line, row.turns[0].content) for row in rows_in(path)] == [(2, "q"), (4, "r")]


def test_an_array_in_a_jsonl_file_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([{"prompt": str(i), "completion": "a"} for i in range(3)]))
    assert [row.turns[0].content for row in rows_in(path)] == ["0", "1", "2"]


def test_names_with_blanks_quotes_and_other_scripts(tmp_path):
    path = tmp_path / "it's “the” ward №3, größe.jsonl"
    path.write_bytes(GOOD)
    assert len(rows_in(path)) == 1
    odd = tmp_path / "bell\a\x1b[31m.jsonl"
    odd.write_bytes(b"{}")
    with pytest.raises(DataError) as error:
        rows_in(odd)
    assert str(error.value).isprintable() and "\\x1b[31m" in str(error.value)


def test_a_row_of_a_megabyte_and_a_word_of_300_000_letters(tmp_path):
    long, word = "lorem ipsum " * 90_000, "a" * 300_000
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        rows = rows_in(write_records(tmp_path / name, [{"prompt": long, "completion": word}]))
        assert rows[0].turns == (Turn("user", long), Turn("assistant", word))


def test_several_files_make_a_split(tmp_path):
    one = write_records(tmp_path / "a.csv", [{"question": "q1", "answer": "a1"}])
    two = write_records(tmp_path / "b.parquet", [{"question": "q2", "answer": "a2"}])
    assert [row.turns[0].content for row in rows_in(one, two)] == ["q1", "q2"]
    other = write_records(tmp_path / "c.jsonl", [{"text": "t"}])
    with pytest.raises(
        DataError, match=r"c\.jsonl:1: the rows are text, those of the files before are question/answer"
    ):
        rows_in(one, other)


# --------------------------------------------------------------------------------------------- property

TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_any_text_comes_out_equal_from_every_format(tmp_path, pairs):
    records = [{"prompt": one, "completion": other} for one, other in pairs]
    for name in FORMATS:
        rows = rows_in(write_records(tmp_path / name, records))
        assert [(row.turns[0].content, row.turns[1].content) for row in rows] == pairs, name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    (TEXT | st.text("a \n\r\t\f\u2028")).filter(lambda text: text.lstrip("\ufeff").strip()),
    st.sampled_from(["", "\n", "\r\n"]),
)
def test_any_text_comes_out_equal_as_a_document(tmp_path, text, end):
    path = tmp_path / "a.txt"
    text = text.lstrip("\ufeff")  # else it would be the file's byte order mark
    if (not end and text.endswith("\n")) or (end == "\n" and text.endswith("\r")):
        text += "."  # else its own last characters would be the line end
    path.write_bytes(text.encode() + end.encode())
    assert [row.text for row in rows_in(path)] == [text]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text("ab \t\r\f\u2028\u3000é", min_size=1).filter(str.strip), min_size=1),
    st.sampled_from(["\n", " \n\f\n\r\n"]),
)
def test_any_lines_and_paragraphs_come_out_equal(tmp_path, texts, blank):
    path = tmp_path / "a.txt"
    texts = [text.removesuffix("\r") + "." for text in texts]
    path.write_bytes(blank.encode() + "\n".join(texts).encode())
    assert [row.text for row in rows_in(path, text_rows="line")] == texts
    path.write_bytes(blank.encode() + ("\r\n" + blank).join(texts).encode() + b"\r")
    assert [row.text for row in rows_in(path, text_rows="paragraph")] == [*texts[:-1], texts[-1] + "\r"]


MOST_MEMORY = 256 << 20
"""Bytes that reading a damaged file of a few kilobytes may take, whatever it claims of itself."""


def damaged(data: bytes, random: random.Random) -> bytes:
    """A file as a bad disk, a bad copy or a bad person leaves it."""
    data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        kind, at = random.randrange(6), random.randrange(len(data) + 1)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + random.randint(1, 50)]
        elif kind == 2:
            data[at:at] = random.randbytes(random.randint(1, 20))
        elif kind == 3:
            data[at:at] = data[at : at + random.randint(1, 200)]
        elif kind == 4 and data:
            data[at % len(data)] ^= 1 << random.randrange(8)
        else:
            data[at:at] = random.choice(string.punctuation).encode() * random.randint(1, 30)
        if not data:
            break
    return bytes(data)


def rows_in_turn(path):
    """Read a file to its end and keep nothing of it."""
    for _ in read_rows([str(path)], Reading()):
        pass


@contextmanager
def in_bounds(memory=MOST_MEMORY, seconds=20):
    """Fail what takes more memory or time than it should."""

    def too_late(*_: object) -> None:
        raise AssertionError(f"took more than {seconds} seconds")

    # What imports and threads take is not the file's doing.
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + memory, limits[1]))
    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("name", [*FORMATS, "a.txt"])
def test_damaged_files_never_give_a_traceback_or_hang(tmp_path, name):
    generator = random.Random(name)
    path = tmp_path / name
    if name == "a.txt":
        path.write_text("\n".join(AWKWARD))
    else:
        write_records(path, FORTY)
    whole = path.read_bytes()

    rows_in(path)
    for _ in range(120):
        path.write_bytes(damaged(whole, generator))
        with in_bounds(seconds=10):
            try:
                rows_in(path)
            except DataError as error:
                assert str(error).startswith(str(tmp_path)) and str(error).isprintable()
