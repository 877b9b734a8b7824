"""A manifest as people write it, and each sentence about what is wrong with it."""

import json
import os
import random
import re
import time

import numpy as np
import pytest
from PIL import Image

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import SPLITS
from pocketfit.sources.data import dataset as data
from pocketfit.sources.data import manifest_rows
from tests.mutations import FEW_COUNTS, as_text, mutated, spoilt, survived

SMALL = Preprocess(height=8, width=8, resize_px=10)


def picture(path, seed, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Six pictures and a mask in data/, and a picture outside of it."""
    for number in range(6):
        picture(tmp_path / f"data/{number}.png", number)
    picture(tmp_path / "outside.png", 99)
    Image.fromarray(np.array([[0, 1, 2, 255, 0, 0, 0, 0]] * 6, np.uint8)).save(tmp_path / "data/mask.png")
    return tmp_path / "data"


def written(folder, content, name="m.jsonl"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows)


def finding(dataset, part):
    found = [sentence for sentence in dataset.findings if part in sentence]
    assert len(found) == 1, dataset.findings
    return found[0]


def test_parts_kinds_and_labels_as_people_write_them(folder):
    rows = [
        {"path": "0.png", "label": "cat", "split": "Train"},
        {"path": "./1.png", "labels": ["dog"], "split": "training", "kind": "night"},
        {"path": "2.png", "label": 7, "split": None},
        {"path": "3.png", "labels": "cafe\u0301", "split": "validation"},
        {"path": "4.png", "label": "cat", "split": "test", "kind": "day"},
        {"path": "5.png", "label": "caf\u00e9"},
    ]
    dataset = data.open_data(written(folder, lines(*rows)))
    assert dataset.class_names == ("7", "caf\u00e9", "cat", "dog")
    assert list(dataset.listing.parts) == ["train", "train", "train", "val", "test", "train"]
    assert list(dataset.listing.kinds) == ["", "night", "", "", "day", ""]
    assert [dataset.class_names[i] for i in dataset.listing.labels] == ["cat", "dog", "7", "café", "cat", "café"]


def test_windows_writes_paths_with_backslashes(folder):
    picture(folder / "sub/deep/7.png", 7)
    dataset = data.open_data(written(folder, "path,text\r\nsub\\deep\\7.png,seven\r\n", "m.csv"))
    assert list(dataset.listing.names) == ["sub/deep/7.png"]


def test_a_text_may_hold_what_it_likes(folder):
    """Quotes, delimiters, separators of lines other than a line end, spaces around it; nothing is changed."""
    texts = ['say "no", twice', " two  spaces ", "a\u2028b\x85c", "e\u0301", "\u0e01\u0e33 \U0001f600"]
    rows = [{"path": f"{row}.png", "text": text} for row, text in enumerate(texts)]
    unescaped = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    cells = "\n".join(f'"{row}.png","{text.replace(chr(34), chr(34) * 2)}"' for row, text in enumerate(texts))
    tabs = "\n".join(f"{row}.png\t{text}" for row, text in enumerate(texts))
    for content, name in ((unescaped, "m.jsonl"), (f"path,text\n{cells}", "m.csv"), (tabs, "m.txt")):
        assert list(data.open_data(written(folder, content, name)).listing.texts) == texts, name


def test_what_is_left_out_is_said(folder):
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "out.png").symlink_to(folder.parent / "outside.png")
    (folder / "up").symlink_to(folder.parent)
    (folder / "in.png").symlink_to(folder / "1.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    bad = ["cut.png", "out.png", "up/outside.png", "circle.png", "pipe.png", "gone.png", "0.png/x.png", "\ud800.png"]
    rows = [{"path": name, "text": "x"} for name in ("0.png", "in.png", *bad)]
    rows += [{"path": "2.png"}, {"path": "3.png", "text": "", "size": 7, "by": "me"}]
    dataset = data.open_data(written(folder, lines(*rows)))
    assert list(dataset.listing.names) == ["0.png", "in.png"]
    assert finding(dataset, "cannot be read").startswith("8 images of 10 cannot be read and are left out: ")
    assert finding(dataset, "2 rows of 12") == "2 rows of 12 have no text and are left out, the first in line 11"
    assert finding(dataset, "not known").startswith(
        "m.jsonl: 2 keys are not known and are ignored: 'size', 'by'; known"
    )
    for name, why in (
        ("cut.png", "truncated|damaged|broken|unrecognized"),
        ("out.png", "it is a link that leads out of the folder of the manifest"),
        ("up/outside.png", "it is a link that leads out of the folder of the manifest"),
        ("pipe.png", "it is no file"),
        ("gone.png", "it does not exist"),
        ("0.png/x.png", "it does not exist"),
        ("\ud800.png", "it does not exist"),
    ):
        path = written(folder, lines({"path": name, "text": "x"}))
        with pytest.raises(UserError, match=rf"None of the 1 picture that .*m\.jsonl names can be read.* \(.*({why})"):
            data.open_data(path)


def test_copies_with_other_targets_are_said_and_stay_together(folder):
    for number in range(100):
        picture(folder / f"many/{number}.png", number + 100)
    (folder / "many/copy.png").write_bytes((folder / "many/0.png").read_bytes())
    (folder / "many/again.png").write_bytes((folder / "many/1.png").read_bytes())
    rows = [{"path": f"many/{number}.png", "text": f"t{number}"} for number in range(100)]
    rows += [{"path": "many/copy.png", "text": "other"}, {"path": "many/again.png", "text": "t1"}]
    dataset = data.open_data(written(folder, lines(*rows)))
    assert finding(dataset, "no network") == (
        "1 sample has the same content as one with another text, for example many/0.png (t0) = many/copy.png (other);"
        " no network can get both right"
    )
    assert "1 sample repeats another one with the same text (same content)" in finding(dataset, "repeats")
    splits = [set(dataset.split(name, SMALL, split_seed=0).names) for name in SPLITS]
    assert sum({"many/0.png", "many/copy.png"} <= names for names in splits) == 1


def test_copies_between_parts_are_left_out_of_training(folder):
    rows = [{"path": f"{number}.png", "text": "x", "split": "train"} for number in range(6)]
    dataset = data.open_data(written(folder, lines(*rows, {"path": "3.png", "text": "x", "split": "test"})))
    assert list(dataset.listing.parts) == ["train"] * 3 + ["left out"] + ["train"] * 2 + ["test"]


ROW = {"path": "0.png", "text": "x"}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("m.jsonl", "", r"m\.jsonl names no picture"),
        ("m.jsonl", "\n \n", r"m\.jsonl names no picture"),
        ("m.jsonl", lines(ROW, {"text": "x"}), r"m\.jsonl, line 2: there is no 'path'"),
        ("m.jsonl", lines(ROW) + "\n\n{", r"m\.jsonl, line 3 is no JSON"),
        ("m.jsonl", '{"path": "0.png", "path": "1.png"}', r"line 1 is no JSON \(a key stands twice"),
        ("m.jsonl", "[" * 5000, "nested too deep"),
        ("m.jsonl", lines(ROW, ["0.png", "x"]), r"line 2 is \[\"0\.png\", \"x\"\]: write an object"),
        ("m.json", '[{"path": "0.png"}, 3]', r"m\.json, entry 2 is 3: write an object"),
        ("m.json", '[{"path": "0.png"}', r"m\.json is no JSON"),
        ("m.jsonl", lines({**ROW, "path": "/etc/hosts"}), r'line 1: \'path\' is "/etc/hosts": give a path below'),
        ("m.jsonl", lines({**ROW, "path": "../outside.png"}), "give a path below the folder of the manifest"),
        ("m.jsonl", lines({**ROW, "path": "a\\..\\..\\outside.png"}), "give a path below the folder of the manifest"),
        ("m.jsonl", lines({**ROW, "path": "C:\\0.png"}), "give a path below the folder of the manifest"),
        ("m.jsonl", lines({**ROW, "path": "\\\\server\\0.png"}), "give a path below the folder of the manifest"),
        ("m.jsonl", lines({**ROW, "path": "0.png\0"}), "give a path below the folder of the manifest"),
        ("m.jsonl", lines({**ROW, "path": "./."}), "give the path of a picture"),
        ("m.jsonl", lines({**ROW, "path": 3}), "'path' is 3: give a text"),
        ("m.jsonl", lines({**ROW, "text": ["x"]}), r"'text' is \[\"x\"\]: give a text"),
        ("m.jsonl", lines({**ROW, "text": "a\tb"}), r'the text holds "\\t", which is no character of a line'),
        ("m.jsonl", lines({**ROW, "text": "\ud800"}), r'the text holds "\\ud800"'),
        ("m.jsonl", lines({**ROW, "text": "x" * 200_000}), "'text' has 200,000 letters, more than 100,000"),
        ("m.jsonl", lines({**ROW, "split": "dev"}), r'\'split\' is "dev": give train, val or test'),
        ("m.jsonl", lines({**ROW, "split": 1}), "'split' is 1: give a text"),
        ("m.jsonl", lines({**ROW, "kind": 1}), "'kind' is 1: give a text"),
        (
            "m.jsonl",
            lines({**ROW, "label": "a"}),
            "there are two targets: give one of label, labels, text, mask, identity, value, values and target",
        ),
        ("m.jsonl", lines(ROW, {"path": "1.png", "label": "a"}), "line 2: there is a 'label', and line 1 has a 'text'"),
        ("m.jsonl", lines({"path": "0.png", "label": ["a", "b"]}), "'label' names 2 classes: give them under 'labels'"),
        (
            "m.jsonl",
            lines({"path": "0.png", "value": "tall"}),
            "line 1: 'value' is \"tall\": give a number, such as 1.5",
        ),
        ("m.jsonl", '{"path": "0.png", "value": NaN}', "'value' is NaN: give a number"),
        ("m.jsonl", lines({"path": "0.png", "value": True}), "'value' is true: give a number"),
        (
            "m.jsonl",
            lines({"path": "0.png", "values": [1, 2]}, {"path": "1.png", "values": [1]}),
            "line 2: 'values' has 1 number, and rows before 2",
        ),
        ("m.jsonl", lines({"path": "0.png", "target": "../1.png"}), "give a path below the folder of the manifest"),
        ("m.jsonl", lines({"path": "0.png", "label": 0.5}), r"'label' is 0\.5: give a text"),
        ("m.jsonl", lines({"path": "0.png", "label": True}), "'label' is true: give a text"),
        ("m.jsonl", lines({"path": "0.png", "label": " "}), r'\'label\' is " ": give the name of a class'),
        ("m.jsonl", lines({"path": "0.png", "mask": "/mask.png"}), "'mask' is \"/mask.png\": give a path below"),
        ("m.jsonl", lines({**ROW, "split": "test"}), r"m\.jsonl has no readable samples to train on"),
        ("m.jsonl", lines({"path": "0.png", "label": "a", "split": "test"}), "samples of no class to train on"),
        ("m.jsonl", lines({"path": "0.png", "label": "a"}, {"path": "1.png", "label": "a"}), "only the class 'a'"),
        ("m.jsonl", lines(ROW).encode("utf-16"), "UTF-16 or UTF-32: save it as UTF-8"),
        ("m.jsonl", b'{"path": "\xff.png"}', r"is no text in UTF-8 \(byte 10\)"),
        ("m.csv", "0.png,x\n1.png,y", "does not begin with the names of its columns, one of them path"),
        ("m.csv", "", "does not begin with the names of its columns"),
        ("m.csv", "path,text\n", r"m\.csv names no picture"),
        (
            "m.csv",
            "path,text\n0.png,a,b",
            r"line 2 has 3 fields, and the first line names 2: put texts with \",\" into",
        ),
        ("m.csv", "path,text\n0.png", "line 2 has 1 field, and the first line names 2"),
        ("m.csv", "path,text,text\n0.png,a,b", r'has two columns "text"'),
        ("m.csv", 'path,text\n0.png,"open', r"m\.csv, line 2 is no CSV"),
        ("m.csv", "path,text\n0.png," + "x" * 200_000, "is no CSV .field larger than"),
        ("m.txt", "0.png x", r"m\.txt, line 1 has no tab"),
        ("m.txt", "0.png\ta\tb", r'the text holds "\\t"'),
        ("m.txt", '0.png\t[{"transcription": "x", "points": [[0, 0]]}]', "the text holds boxes"),
    ],
)
def test_what_is_wrong_is_a_sentence_with_the_file_and_the_line(folder, name, content, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        data.open_data(written(folder, content, name))
    assert name in str(raised.value) and "\n" not in str(raised.value)


def test_a_path_outside_is_not_even_looked_at(folder, monkeypatch):
    """The check is one of the text: no file of that name is asked for."""
    path = written(folder, lines(ROW, {"path": "../outside.png", "text": "x"}))
    looked, lstat = [], os.lstat
    monkeypatch.setattr(os, "lstat", lambda name, **more: looked.append(str(name)) or lstat(name, **more))
    with pytest.raises(UserError, match="line 2"):
        data.open_data(path)
    assert not [name for name in looked if name.endswith(".png")]


def test_a_manifest_that_is_too_large_is_not_read(folder, monkeypatch):
    path = written(folder, lines(*[ROW] * 9))
    monkeypatch.setattr(manifest_rows, "MOST_ROWS", 5)
    with pytest.raises(UserError, match="more than 5 rows"):
        data.open_data(path)
    monkeypatch.setattr(manifest_rows, "MOST_BYTES", 10)
    with pytest.raises(UserError, match="too large to be one"):
        data.open_data(path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_a_million_lines_are_read_in_seconds(tmp_path, suffix):
    row = {
        ".jsonl": '{{"path": "lines/{0}/{1}.png", "text": "{1:018d}"}}',
        ".csv": "lines/{0}/{1}.png,{1:018d}",
        ".txt": "lines/{0}/{1}.png\t{1:018d}",
    }[suffix]
    head = "path,text\n" if suffix == ".csv" else ""
    path = tmp_path / f"m{suffix}"
    path.write_text(head + "\n".join(row.format(number // 1000, number) for number in range(10**6)))
    started = time.monotonic()
    rows = manifest_rows.read_rows(path).rows
    assert time.monotonic() - started < 60
    assert (len(rows), rows[-1].path, rows[-1].target) == (10**6, "lines/999/999999.png", "000000000000999999")


@pytest.mark.parametrize("count", FEW_COUNTS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_changed_manifests_are_read_or_refused(folder, suffix, count):
    sound = [{"path": f"{row}.png", "text": f"text {row}", "split": "train", "kind": "k"} for row in range(6)]
    path = folder / f"m{suffix}"

    def write(rng: random.Random) -> None:
        if suffix == ".jsonl":
            changed = list(map(as_text, sound))
            place = rng.randrange(6)
            changed[place] = mutated(sound[place], rng)
            path.write_bytes(b"\n".join(changed))
        elif suffix == ".json":
            path.write_bytes(mutated(sound, rng))
        else:
            text = "path,text\n" if suffix == ".csv" else ""
            text += "\n".join(f"{r['path']}{',' if suffix == '.csv' else chr(9)}{r['text']}" for r in sound)
            path.write_bytes(spoilt(text.encode(), rng))

    def read() -> None:
        dataset = data.open_data(path)
        assert re.fullmatch("[0-9a-f]{64}", dataset.sha256)
        for sentence in (*dataset.findings, *dataset.listing.names, *dataset.listing.kinds):
            sentence.encode("utf-8")

    seen = survived(count, folder, write, read)
    assert seen["refused"] and seen["read"]
