"""Weights from all kinds of files, good and bad; nothing in them is ever run."""

import argparse
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.sources.models import weights_file
from pocketfit.sources.models.weights_file import read_state_dict, read_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}
AVERAGE = {name: tensor + 1 for name, tensor in STATE.items()}


def assert_is(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def saved(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        {"model": STATE},
        {"model": {"state_dict": STATE}},
        {"model_state_dict": STATE, "args": argparse.Namespace(lr=0.1)},
        {"net": {f"module.{name}": tensor for name, tensor in STATE.items()}},
        {f"_orig_mod.module.{name}": tensor for name, tensor in STATE.items()},
    ],
    ids=["bare", "state_dict", "model", "nested", "namespace", "parallel", "compiled"],
)
def test_usual_wrappers(content, tmp_path):
    found = read_weights(saved(content, tmp_path / "w.pth"))
    assert_is(found.state, STATE)
    assert found.notes == ()


def test_safetensors_and_the_format_before_zip(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    assert_is(read_state_dict(tmp_path / "w.safetensors"), STATE)
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_is(read_state_dict(tmp_path / "old.pth"), STATE)


def test_plain_weights_go_before_their_average_and_it_is_said(tmp_path):
    found = read_weights(saved({"model_ema": AVERAGE, "model": STATE}, tmp_path / "w.pth"))
    assert_is(found.state, STATE)
    assert found.notes == ("w.pth holds plain weights and a moving average; those under 'model' were taken.",)


def test_average_is_taken_where_there_is_nothing_else(tmp_path):
    found = read_weights(saved({"state_dict_ema": AVERAGE, "epoch": 1}, tmp_path / "w.pth"))
    assert_is(found.state, AVERAGE)
    assert "moving average only" in found.notes[0] and "state_dict_ema" in found.notes[0]


class Malicious:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_pickles_are_refused_with_advice_and_never_run(tmp_path, capsys):
    for name, content in {"whole": nn.Linear(2, 2), "bad": {"state_dict": STATE, "extra": Malicious()}}.items():
        with pytest.raises(UserError, match=rf"{name}\.pth is a pickle .*torch\.save\(model\.state_dict\(\)"):
            read_state_dict(saved(content, tmp_path / f"{name}.pth"))
    assert capsys.readouterr().out == ""


def test_cut_off_at_any_place_is_a_sentence(tmp_path):
    whole = saved(STATE, tmp_path / "w.pth").read_bytes()
    for share in (0.01, 0.3, 0.7, 0.99):
        (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=r"cut\.pth .*(cut off|neither)"):
            read_state_dict(tmp_path / "cut.pth")
    save_file(STATE, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"cut\.safetensors is no whole safetensors file"):
        read_state_dict(tmp_path / "cut.safetensors")


def test_other_files_are_each_a_sentence(tmp_path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<html>404 not found</html>\n")
    (tmp_path / "noise.pth").write_bytes(bytes(range(255, 0, -1)) * 9)
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("photo.jpg", bytes(200))
    for name, sentence in {
        "missing.pth": "There is no file",
        "empty.pth": "is empty",
        "page.pth": "is a text",
        "noise.pth": "neither safetensors nor a state dict",
        "photos.pth": "damaged",
        ".": "is not a file",
    }.items():
        with pytest.raises(UserError, match=sentence):
            read_state_dict(tmp_path / name)
    with pytest.raises(UserError, match="holds no weights"):
        read_state_dict(saved({"epoch": 3}, tmp_path / "epoch.pth"))
    with pytest.raises(UserError, match="holds no weights"):
        read_state_dict(saved([1, 2], tmp_path / "list.pth"))


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_one_bad_number_is_found(value, what, tmp_path):
    bad = {"a.weight": STATE["a.weight"], "deep.b.bias": torch.tensor([1.0, value])}
    with pytest.raises(UserError, match=rf"deep\.b\.bias in .*w\.pth contains {what}"):
        read_state_dict(saved(bad, tmp_path / "w.pth"))


def test_limits_of_size(tmp_path, monkeypatch):
    path = saved({"a": torch.zeros(10_000)}, tmp_path / "w.pth")
    monkeypatch.setattr(weights_file, "MAX_BYTES", 10_000)
    with pytest.raises(UserError, match="more than"):
        read_state_dict(path)
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1_000_000))
    with pytest.raises(UserError, match="unpacks to"):
        read_state_dict(tmp_path / "bomb.pth")
