"""Which output of a classifier each class of the data is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model, Origin
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.tasks import classification
from pocketfit.tasks.common.class_names import label_mapping, order_of_numbers, with_labels

PREPROCESS = Preprocess(height=8, width=8, resize="exact")


@given(
    st.permutations(["ant", "bee", "cat", "dog"]), st.sets(st.sampled_from(["ant", "bee", "cat", "dog"]), min_size=1)
)
def test_classes_are_matched_by_name(labels: list[str], classes: set[str]) -> None:
    mapping = label_mapping(sorted(classes), labels)
    assert [labels[index] for index in mapping] == sorted(classes)


def test_folders_that_are_class_indices() -> None:
    assert label_mapping(["0", "12", "2"], [f"word {i}" for i in range(13)]) == [0, 12, 2]
    assert label_mapping(["0", "1"], ["1", "0"]) == [1, 0], "a name that is known counts as a name"
    with pytest.raises(UserError, match="none of the model's 13 labels"):
        label_mapping(["0", "13"], [f"word {i}" for i in range(13)])


def test_a_class_that_the_model_does_not_know_is_named() -> None:
    with pytest.raises(UserError, match=r"'fish' \(2 of 3 in all\) is none of the model's 2 labels \(cat, dog\): name"):
        label_mapping(["cat", "fish", "wolf"], ["cat", "dog"])


def test_names_match_whatever_editor_wrote_them() -> None:
    assert label_mapping(["cafe\u0301", "b"], ["b ", "caf\u00e9"]) == [1, 0]


NUMBERED = sorted(map(str, range(1, 13)))  # 1, 10, 11, 12, 2, …: as folders are listed


def unnamed(outputs: int) -> Model:
    signature = Signature((TensorSpec("image", (None, 3, 8, 8)),), (TensorSpec("logits", (None, outputs)),))
    return Model(network=None, signature=signature, preprocess=PREPROCESS, labels=(), origin=Origin("object", "net"))


def test_numbered_folders_and_a_labels_file_in_number_order() -> None:
    in_order = [str(number) for number in range(1, 13)]
    assert [in_order[index] for index in label_mapping(NUMBERED, in_order)] == NUMBERED
    assert order_of_numbers(NUMBERED, in_order) == []


def test_the_order_of_unnamed_outputs_is_said_where_it_is_assumed() -> None:
    model = with_labels(unnamed(12), NUMBERED)
    assert model.labels == tuple(NUMBERED)
    (said,) = model.findings
    assert "the order of the outputs is assumed to be 1, 10, 11, 12, 2 and 7 more" in said and "--labels" in said
    assert label_mapping(NUMBERED, model.labels) == list(range(12))
    from_zero = sorted(map(str, range(12)))
    model = with_labels(unnamed(12), from_zero)
    assert model.labels == tuple(map(str, range(12))) and model.findings == ()
    (said,) = order_of_numbers(from_zero, model.labels)
    assert "taken for the numbers of the outputs: 0, 1, 2" in said and "(0, 1, 10, 11 and 8 more)" in said
    assert order_of_numbers(list("0123"), with_labels(unnamed(4), list("0123")).labels) == []
    assert order_of_numbers([str(n) for n in range(12)], model.labels) == [], "the labels of arrays are numbers"
    (said,) = order_of_numbers(list("012"), ["cat", "dog", "owl"])
    assert "0, 1, 2 are taken for the numbers of the outputs, counted from 0" in said
    named = replace(unnamed(2), labels=("b", "a"))
    assert with_labels(named, ["a", "b"]) == named
    assert with_labels(unnamed(3), ["a", "b"]).labels == ("0", "1", "2"), "as many names as outputs, or none"


def test_wordnet_ids_and_numbers_from_one_get_their_mend() -> None:
    with pytest.raises(UserError, match=r"'n01440764' .*these are WordNet ids: give --labels"):
        label_mapping(["n01440764", "n01443537"], ["tench", "goldfish"])
    with pytest.raises(UserError, match=r"'1' .*seem to count from 1: give --labels"):
        label_mapping(["1", "2", "3"], ["cat", "dog", "owl"])


def test_aligned_labels_are_the_models() -> None:
    array = np.zeros((4, 8, 8, 3), np.uint8)
    samples = Samples(
        array=array,
        labels=np.array([0, 1, -1, 0]),
        names=list("abcd"),
        split="train",
        sha256="00",
        preprocess=PREPROCESS,
        class_names=("dog", "cat"),
    )
    found = classification.read_targets(samples, ("bird", "cat", "dog"))
    assert found.labels.tolist() == [2, 1, -1, 2], "no label stays no label"
    assert found.class_names == ("bird", "cat", "dog")
