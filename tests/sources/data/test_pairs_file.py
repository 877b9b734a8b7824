"""Files of pairs: what is read, what is refused, and that pictures of the test are in no other pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import SPLITS
from pocketfit.sources.data.dataset import for_form, from_arrays, open_data
from pocketfit.tasks import embedding
from pocketfit.tasks.common.verification import Pairs

PREPROCESS = Preprocess(height=8, width=8, resize="exact", resize_px=8)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def test_pairs_of_lfw_are_found_by_name_and_number(tmp_path: Path) -> None:
    for seed, (who, number) in enumerate([("Ann_Lee", 1), ("Ann_Lee", 2), ("Bob_Ray", 1), ("Cy_Day", 4)]):
        picture(tmp_path / who / f"{who}_{number:04d}.jpg", seed)
    (tmp_path / "pairs.txt").write_text("1\t1\nAnn_Lee\t1\t2\nBob_Ray\t1\tCy_Day\t4\n")
    data = open_data(tmp_path / "pairs.txt")
    assert data.form == "identities" and len(data.listing.names) == 4
    assert Pairs(data.listing.identities).counts == (1, 1)


def test_a_split_column_is_kept_and_pictures_of_the_test_are_in_no_other_pair(tmp_path: Path) -> None:
    for seed in range(8):
        picture(tmp_path / f"{seed}.png", seed)
    rows = ["path_a,path_b,same,split", "0.png,1.png,1,test", "0.png,2.png,0,test", "4.png,5.png,1,train"]
    (tmp_path / "p.csv").write_text("\n".join([*rows, "4.png,6.png,0,train"]))
    data = open_data(tmp_path / "p.csv")
    assert sorted(data.split("verdict", PREPROCESS, split_seed=0).names) == ["0.png", "1.png", "2.png"]
    (tmp_path / "p.csv").write_text("\n".join([*rows, "0.png,6.png,0,train"]))
    with pytest.raises(UserError, match=r"line 5: 0\.png is in another split than in line 2"):
        open_data(tmp_path / "p.csv")


def test_pictures_that_hang_together_share_a_split_and_where_all_do_the_same_ones_still_do(tmp_path: Path) -> None:
    for seed in range(120):
        picture(tmp_path / f"{seed}.png", seed)
    chain = [f"{n}.png,{n + 1}.png,{int(n % 2 == 0)}" for n in range(119)]
    (tmp_path / "p.csv").write_text("\n".join(["path_a,path_b,same", *chain]))
    data = open_data(tmp_path / "p.csv")
    assert any("hang together" in said for said in data.findings)
    split_of = {name: split for split in SPLITS for name in data.split(split, PREPROCESS, split_seed=0).names}
    assert all(split_of[f"{n}.png"] == split_of[f"{n + 1}.png"] for n in range(0, 119, 2))
    assert len(set(split_of.values())) == 4


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "path_a,path_b,same\n0.png,1.png,1", "has no pair that is different: verification needs both"),
        ("p.csv", "path_a,path_b,same\n0.png,1.png,0", "has no pair that is same"),
        ("p.csv", "path_a,path_b,same\n0.png,1.png,maybe", "line 2: 'same' is .maybe"),
        ("p.csv", "path_a,path_b,same\n0.png,,1", "line 2: there is no 'path_b', which names a picture"),
        ("p.csv", "path_a,path_b,same\n0.png,0.png,1", "both pictures are .0.png"),
        ("p.csv", "path_a,path_b,same\n0.png,../1.png,1", "paths are relative, and stay in the folder"),
        ("p.csv", "path_a,path_b,same,split\n0.png,1.png,1,often", "'split' is \"often\": give train, val or test"),
        ("p.csv", "path_a,path_b,same\n", "names no pair"),
        ("p.csv", "path_a,path_b,same\na.png,b.png,1\na.png,c.png,0", "None of the 3 pictures that"),
        ("p.jsonl", '{"path_a": "0.png", "path_b": "1.png", "same": true}\n{', "line 2 is no JSON"),
        ("p.txt", "0.png 1.png 1\n0.png 1.png", "line 2: it has 2 words: write two paths, and 1"),
        ("p.txt", "10 300\nAnn 1 2\nAnn one 2", "line 3: it is neither 'name n n' nor"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    for seed in range(2):
        picture(tmp_path / f"{seed}.png", seed)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        open_data(tmp_path / name)


def test_a_folder_by_class_is_one_of_identities_and_those_of_the_test_need_no_training_pictures(tmp_path: Path) -> None:
    for seed, (part, who) in enumerate(
        [(p, w) for p, w in (("train", "a"), ("train", "b"), ("test", "c"), ("test", "d"))] * 5
    ):
        picture(tmp_path / part / who / f"{seed}.png", seed)
    data = open_data(tmp_path)
    assert data.form == "classes"
    known = for_form(data, "identities")
    samples = embedding.read_targets(known.split("verdict", PREPROCESS, split_seed=0), ())
    assert Pairs(samples.labels).counts == (20, 25)
    assert known.sha256 != data.sha256 and not any("left out" in said for said in known.findings)


def test_many_identities_are_split_as_wholes_and_few_are_not(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), np.uint8)
    many = for_form(from_arrays(pixels, np.arange(600) % 150), "identities")
    seen = [set(many.targets(split, 0).tolist()) for split in SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 150 and all(seen)
    few = for_form(from_arrays(pixels, np.arange(600) % 10), "identities")
    assert all(set(few.targets(split, 0).tolist()) == set(range(10)) for split in SPLITS)
    assert any("no identity that training has not seen" in said for said in few.findings)


def test_a_split_without_both_kinds_of_pairs_is_a_sentence_and_few_pairs_are_said() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), np.uint8)
    one = from_arrays(pixels[:200], np.arange(200) % 2, x_test=pixels[200:], y_test=np.zeros(100, np.int64))
    data = for_form(one, "identities")
    with pytest.raises(UserError, match="The test split has no impostor pair"):
        embedding.read_targets(data.split("verdict", PREPROCESS, split_seed=0), ())
    assert "needs 300,000 impostor pairs or more, and the test split has 2,500" in embedding.too_few(
        "tar-at-far-1e-5", np.arange(100) % 2, "verdict"
    )
    assert embedding.too_few("tar-at-far-1e-2", np.arange(100) % 2, "verdict") == ""
