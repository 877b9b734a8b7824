"""Models from names, factories, modules and folders, and back."""

import json
import os
import re
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit import zoo
from pocketfit.core.errors import UserError
from pocketfit.core.model import Origin
from pocketfit.core.plan.prune import Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.passes.prune import prune_channels
from pocketfit.sources.models.open_model import (
    fingerprint,
    load_model,
    model_from_module,
    open_model,
    resize_to,
    save_model,
)

NAME = "mobilenet_v3_small"
torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path):
    """Weights of a narrow network of the zoo with 7 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.save({"state_dict": zoo.build(NAME, width=0.5, classes=7).state_dict()}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current directory with a module of factories in it; its name is new for each test."""
    name = "user_" + re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            def plain():
                return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

            def counted(num_classes=4):
                first, pool = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1)
                return nn.Sequential(first, pool, nn.Flatten(), nn.Linear(8, num_classes))

            def raises():
                return {}["no such key"]

            def gives_text():
                return "a network"

            grey = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_zoo_name_takes_width_and_classes_from_the_weights(checkpoint):
    model = open_model(NAME, weights=checkpoint)
    assert model.origin == Origin("zoo", NAME, {"width": 0.5, "classes": 7})
    assert model.signature.inputs[0].shape == (None, 3, 224, 224) and model.signature.inputs[0].layout == "NCHW"
    assert model.signature.outputs[0].shape == (None, 7)
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.network.state_dict().items())
    assert not model.network.training and model.findings == ()


def test_published_preprocessing_comes_with_the_name(tmp_path):
    torch.save(zoo.build("mobilenet_v1", width=0.25, classes=3).state_dict(), tmp_path / "w.pth")
    model = open_model("mobilenet_v1", weights=tmp_path / "w.pth")
    assert model.preprocess.mean == (0.5, 0.5, 0.5) and model.preprocess.resize_px == 256


def test_other_class_count_gives_a_new_head_and_says_so(checkpoint):
    model, same = open_model(NAME, weights=checkpoint, classes=3), open_model(NAME, weights=checkpoint)
    assert model.signature.outputs[0].shape == (None, 3)
    assert "7 classes" in model.findings[0] and "needs training" in model.findings[0]
    assert torch.equal(model.network.features[0][0].weight, same.network.features[0][0].weight)
    assert fingerprint(open_model(NAME, weights=checkpoint, classes=3).network) == model.sha256


def test_missing_weights_are_said():
    assert "random" in open_model(NAME, classes=2).findings[0]
    assert open_model(NAME, classes=2).sha256 == open_model(NAME, classes=2).sha256


def test_weights_of_another_architecture_name_the_right_one(checkpoint):
    with pytest.raises(UserError) as caught:
        open_model("resnet18", weights=checkpoint)
    text = str(caught.value)
    assert str(checkpoint) in text and text.count("and ") >= 2
    assert "missing are conv1.weight, bn1.weight, bn1.bias and 99 more" in text
    assert text.endswith(f"They fit {NAME}: use that name")


def test_prefix_of_a_harness_and_missing_counters_are_no_obstacle(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    odd = {f"backbone.{k}": v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(odd, tmp_path / "odd.pth")
    assert open_model(NAME, weights=tmp_path / "odd.pth").sha256 == open_model(NAME, weights=checkpoint).sha256


def test_factory(project, tmp_path):
    model = open_model(f"{project}:plain", input_shape="3x16x16", preprocess="imagenet")
    assert model.origin == Origin("factory", f"{project}:plain")
    assert model.signature.inputs[0].shape == (None, 3, 16, 16) and model.preprocess.height == 16
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Identity(), nn.Identity(), nn.Linear(8, 9)).state_dict(), "w.pth")
    counted = open_model(f"{project}:counted", weights="w.pth", input_shape=(3, 16, 16), labels=list("abcdefghi"))
    assert counted.origin.arguments == {"num_classes": 9} and counted.labels[8] == "i"
    assert any("ImageNet is assumed" in sentence for sentence in counted.findings)
    save_model(counted, tmp_path / "model")
    with pytest.raises(UserError, match=rf'model.json names the factory "{project}:counted", code .* --allow-code'):
        open_model(tmp_path / "model")
    for allowed in (True, [f"{project}:counted"]):
        assert open_model(tmp_path / "model", allow_code=allowed).sha256 == counted.sha256
    with pytest.raises(UserError, match="--allow-code"):
        open_model(tmp_path / "model", allow_code=[f"{project}:plain"])


def test_grey_pictures(project):
    model = open_model(f"{project}:grey", input_shape="1x28x28")
    assert (model.preprocess.colour, model.preprocess.mean, model.preprocess.height) == ("GRAY", (0.5,), 28)
    with pytest.raises(UserError, match="has 1 channels, but the preprocessing makes 3"):
        open_model(f"{project}:grey", input_shape="1x28x28", preprocess="imagenet")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("raises", r"raises failed: KeyError: 'no such key' \(.*\.py:12\)$"),
        ("gives_text", "gives a str: it must give a torch.nn.Module"),
        ("absent", "has no function absent"),
    ],
)
def test_factory_that_fails_is_a_sentence(project, function, sentence):
    with pytest.raises(UserError, match=sentence):
        open_model(f"{project}:{function}")


def test_module_that_fails_is_a_sentence(project, tmp_path):
    (tmp_path / f"{project}_broken.py").write_text("import math\nmath.sqrt(-1)\n")
    with pytest.raises(UserError, match=r"can't be imported: ValueError: .*_broken\.py:2\)"):
        open_model(f"{project}_broken:f")
    (tmp_path / f"{project}_needs.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(UserError, match="can't be imported: ModuleNotFoundError: No module named 'a_package"):
        open_model(f"{project}_needs:f")
    with pytest.raises(UserError, match="There is no module nowhere_at_all"):
        open_model("nowhere_at_all:f")
    with pytest.raises(UserError, match="takes no argument 'classes'"):
        open_model(f"{project}:plain", classes=3)


def test_bad_spec_and_bad_shapes_are_sentences(project, tmp_path):
    with pytest.raises(UserError, match=r"no model folder, no \.onnx file, no name of the zoo"):
        open_model("mobilenet_v9")
    with pytest.raises(UserError, match=r"holds no model .* pocketfit train"):
        open_model(tmp_path)
    with pytest.raises(UserError, match=r"does not run on an input of 1x16x16 .* --input-shape"):
        open_model(f"{project}:grey", input_shape="1x16x16")
    with pytest.raises(UserError, match="cannot be read: write channels"):
        open_model(f"{project}:grey", input_shape="1x-16")
    with pytest.raises(UserError, match="There are 2 labels, but the network has 4 outputs"):
        open_model(f"{project}:plain", labels=["a", "b"])
    with pytest.raises(UserError, match="The label 'a' stands for several outputs"):
        open_model(f"{project}:plain", labels=list("abca"))


def test_networks_that_pocketfit_does_not_take():
    class Text(nn.Module):
        def forward(self, x):
            return "cat"

    with pytest.raises(UserError, match="gives a str: pocketfit takes"):
        model_from_module(Text(), preprocess=Preprocess(height=8, width=8))
    bad = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        bad[1].weight[0, 5] = float("nan")
    with pytest.raises(UserError, match=r"1\.weight of the network contains NaN"):
        model_from_module(bad, preprocess=Preprocess(height=8, width=8))
    with pytest.raises(UserError, match="A dict is no network"):
        model_from_module({}, preprocess=Preprocess())


def test_labels_and_preprocess_from_files(project, tmp_path):
    (tmp_path / "labels.txt").write_text("one\ntwo\n\nthree\nfour\n")
    (tmp_path / "p.json").write_text(json.dumps({"mean": [0, 0, 0], "std": [1, 1, 1], "height": 20, "width": 20}))
    model = open_model(f"{project}:plain", labels=tmp_path / "labels.txt", preprocess=tmp_path / "p.json")
    assert model.labels == ("one", "two", "three", "four")
    assert model.preprocess.mean == (0, 0, 0) and model.signature.inputs[0].shape == (None, 3, 20, 20)
    (tmp_path / "p.json").write_bytes(b'\xef\xbb\xbf{"height": 20, "width": 20}')
    (tmp_path / "labels.txt").write_bytes("\ufeffone\r\ntwo\r\nthree\r\nfour".encode())
    again = open_model(f"{project}:plain", labels=tmp_path / "labels.txt", preprocess=tmp_path / "p.json")
    assert (again.labels[0], again.preprocess.height) == ("one", 20)
    (tmp_path / "labels.txt").write_bytes("one\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"labels\.txt is a text in UTF-16 or UTF-32: save it as UTF-8"):
        open_model(f"{project}:plain", labels=tmp_path / "labels.txt")
    for text, sentence in {
        '{"means": [0]}': "'means' is no known key",
        '{"mean": [0]}': "'mean' must hold 3 numbers",
        '{"std": [1, 0, 1]}': "other than 0",
        '{"colour": "CMYK"}': 'give one of "RGB", "BGR", "GRAY"',
        '{"height": "tall"}': "'height' is \"tall\": give a whole number",
        "[1]": r"it is \[1\]: give an object",
        "{": "is no JSON",
    }.items():
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            open_model(f"{project}:plain", preprocess=tmp_path / "p.json")


def test_labels_as_editors_save_them(project, tmp_path):
    """A byte order mark is dropped, names come in Unicode's composed form, other encodings get a sentence."""
    names, wanted = "cafe\u0301\nchat noir \n\ntwo\nthree\n", ("caf\u00e9", "chat noir", "two", "three")
    prep = json.dumps({"mean": [0, 0, 0], "std": [1, 1, 1], "height": 20, "width": 20})
    (tmp_path / "p.json").write_text(prep, encoding="utf-8-sig")
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "labels.txt").write_text(names, encoding=encoding)
        model = open_model(f"{project}:plain", labels=tmp_path / "labels.txt", preprocess=tmp_path / "p.json")
        assert model.labels == wanted
    (tmp_path / "labels.json").write_text(
        json.dumps(["cafe\u0301", "chat noir ", "two", "three"]), encoding="utf-8-sig"
    )
    assert (
        open_model(f"{project}:plain", labels=tmp_path / "labels.json", preprocess=tmp_path / "p.json").labels == wanted
    )
    for encoding, sentence in (
        ("utf-16", "UTF-16 or UTF-32: save it as UTF-8"),
        ("latin-1", "no text in UTF-8"),
    ):
        (tmp_path / "labels.txt").write_text(wanted[0], encoding=encoding)
        with pytest.raises(UserError, match=rf"labels\.txt is .*{sentence}"):
            open_model(f"{project}:plain", labels=tmp_path / "labels.txt", preprocess=tmp_path / "p.json")


@pytest.mark.parametrize("name", [NAME, "shufflenet_v2", "resnet18"])
def test_pruned_network_comes_back_from_its_folder(name, tmp_path):
    network = zoo.build(name, width=0.5, classes=6).eval()
    origin = Origin("zoo", name, {"width": 0.5, "classes": 6})
    model = model_from_module(
        network,
        preprocess=Preprocess(height=32, width=32),
        labels=list("abcdef"),
        input_shape=(3, 32, 32),
        origin=origin,
    )
    pruned = prune_channels.apply(model, Prune(0.5, multiple=4))
    save_model(pruned, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "model.json", "weights.safetensors"]
    again = open_model(tmp_path / "model")
    assert (again.sha256, again.origin, again.signature) == (pruned.sha256, pruned.origin, pruned.signature)
    assert (again.preprocess, again.labels, again.findings) == (pruned.preprocess, pruned.labels, pruned.findings)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.network(x), pruned.network(x))
    twice = prune_channels.apply(again, Prune(0.5, multiple=4))
    save_model(twice, tmp_path / "model")
    assert open_model(tmp_path / "model").sha256 == twice.sha256 != pruned.sha256


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_model_folder_is_readable_as_the_umask_says(folder, tmp_path, umask, mode):
    model, before = open_model(folder), os.umask(umask)
    try:
        save_model(model, tmp_path / "again")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "again").iterdir()} == {
        "model.json": mode,
        "weights.safetensors": mode,
    }


@pytest.fixture
def folder(tmp_path):
    save_model(open_model(NAME, classes=2, input_shape="3x32x32"), tmp_path / "model")
    return tmp_path / "model"


def test_saving_overwrites_nothing_but_model_folders(folder, tmp_path):
    model = open_model(folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_text("precious")
    for place in ("photos", "photos/holiday.jpg"):
        with pytest.raises(UserError, match="nothing was overwritten"):
            save_model(model, tmp_path / place)
    assert (tmp_path / "photos/holiday.jpg").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    (folder / "notes.txt").write_text("mine")
    save_model(model, tmp_path / "empty")
    save_model(model, folder)
    assert open_model(tmp_path / "empty").sha256 == open_model(folder).sha256
    assert (folder / "notes.txt").read_text() == "mine"


def changed(folder, **values):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def zoo_origin(name, **arguments):
    return {"origin": {"kind": "zoo", "name": name, "arguments": arguments}}


def test_damaged_folders_are_sentences(folder):
    whole = (folder / "model.json").read_text()
    resnet, signature = zoo_origin("resnet18")["origin"], json.loads(whole)["signature"]
    cases = {
        "'format_version' is 9: give one of 1": {"format_version": 9},
        "'format_version' is true": {"format_version": True},
        "is not the file that": {"weights_sha256": "0" * 64},
        "'signature' is 3: give an object; make the folder again": {"signature": 3},
        "doesn't fit the network that resnet18 builds": {"origin": resnet},
        "'preprocess.sharpness' is no known key": {"preprocess": {"sharpness": 1}},
        r"'preprocess.background\[0\]' is 300: give a number from 0 up to 255": {
            "preprocess": {"height": 32, "width": 32, "background": [300, -1, 2]}
        },
        r"'signature.inputs\[0\].shape' is \[3, 32, 32\], and 'preprocess' makes \[3, 224, 224\]": {"preprocess": {}},
        "No architecture is called 'nothing'": zoo_origin("nothing"),
        'names the factory "shutil:rmtree", code of your': {
            "origin": {**resnet, "kind": "factory", "name": "shutil:rmtree"}
        },
        '\'origin.kind\' is "evil": give one of "zoo", "factory", "onnx", "object"': {
            "origin": {**resnet, "kind": "evil"}
        },
        "'origin.arguments.path' is \"/\"": zoo_origin(NAME, path="/"),
        "can't be built with depth=3": zoo_origin(NAME, depth=3),
        "can't be built with width=1e\\+09": zoo_origin(NAME, width=1e9),
        "can't be built with classes=1e\\+12": zoo_origin(NAME, classes=10**12),
        "has .* GB, more than the 4 GB allowed": zoo_origin("resnet50", width=8.0, classes=10**5),
        "can't be built again": {"origin": {"kind": "object", "name": "Net", "arguments": {}}},
        "'labels' is \"ab\": give a list": {"labels": "ab"},
        "'labels' is .*: \"a\" stands in it twice": {"labels": ["a", "a"]},
        "'labels' are 4 for 2 outputs": {"labels": ["a", "b", "c", "d"]},
        "'split_seed' is Infinity: give a whole number": {"split_seed": float("inf")},
        "'learned.sparse' names \"nowhere\", which is no layer": {"learned": {"sparse": ["nowhere"]}},
        "'signature.inputs' has two tensors of one name": {
            "signature": {**signature, "inputs": signature["inputs"] * 2}
        },
        r"'signature.inputs' is \[\]: give at least 1": {"signature": {"inputs": [], "outputs": []}},
        "gives .*2, 2.* for two samples, its description says .*2, 4": {
            "signature": {**signature, "outputs": [{**signature["outputs"][0], "shape": [None, 4]}]}
        },
    }
    for sentence, values in cases.items():
        (folder / "model.json").write_text(whole)
        changed(folder, **values)
        if float("inf") in values.values():
            (folder / "model.json").write_text((folder / "model.json").read_text().replace("Infinity", "1e400"))
        with pytest.raises(UserError, match=sentence):
            open_model(folder)
    for text, sentence in {
        whole[:-9]: "is no JSON",
        "[" * 100_000: "nested too deep",
        whole.replace("0,", "NaN,", 1): "NaN is no number in JSON",
        whole.replace('"labels"', '"origin"'): 'the key "origin" stands twice',
    }.items():
        (folder / "model.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            open_model(folder)
    (folder / "model.json").write_text(whole)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="There is no file"):
        open_model(folder)


def test_module_from_python_comes_back_with_the_unpruned_network(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    )
    model = model_from_module(network, preprocess=Preprocess(height=16, width=16))
    pruned = prune_channels.apply(model, Prune(0.5))
    save_model(pruned, tmp_path / "m")
    assert load_model(tmp_path / "m", unpruned=network).sha256 == pruned.sha256
    assert network[1].out_channels == 16


def test_folder_takes_another_preprocess_and_no_weights(folder, checkpoint):
    model = open_model(folder, preprocess=Preprocess(height=48, width=48, mean=(0, 0, 0)), labels=["a", "b"])
    assert model.signature.inputs[0].shape == (None, 3, 48, 48) and model.labels == ("a", "b")
    with pytest.raises(UserError, match="has its own weights"):
        open_model(folder, weights=checkpoint)


def test_fingerprint_sees_weights_buffers_and_structure():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    first = fingerprint(network())
    assert fingerprint(network()) == first
    other = network()
    other[1].running_mean[2] += 1e-6
    assert fingerprint(other) != first
    assert fingerprint(nn.Sequential(*list(network())[:2], nn.ReLU6())) != first


def test_resize_keeps_shared_weights_shared_and_names_what_does_not_fit():
    def tied():
        network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        network[1].weight = network[0].weight
        return network

    network, small = tied(), torch.from_numpy(np.ones((2, 2), np.float32))
    resize_to(network, {"0.weight": small, "1.weight": small})
    assert network[1].weight is network[0].weight and network[0].in_features == 2
    for state, sentence in (
        ({"0.weight": small}, "1.weight is in the network but not in the weights"),
        ({"0.weight": small, "1.weight": small + 1}, "1.weight is shared"),
        ({"0.weight": small, "1.weight": small[0]}, "1.weight has 1 dimensions"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            resize_to(tied(), state)


@pytest.mark.weights
def test_published_mobilenet_v2(mobilenet_v2_checkpoint):
    model = open_model("mobilenet_v2", weights=mobilenet_v2_checkpoint)
    assert model.origin.arguments == {"width": 1.0, "classes": 1000} and model.findings == ()
