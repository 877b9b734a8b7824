"""Which output of a classifier each class of the data is, by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.support.text import comparable, some

NUMBER, WORDNET_ID = re.compile("[0-9]{1,9}"), re.compile("n[0-9]{8}")


def with_labels(model: Model, class_names: Sequence[str] = ()) -> Model:
    """The model with labels, if it has none.

    Where there are as many classes as outputs, the labels are the classes in their order, and a finding says so; else
    they are the outputs' numbers.
    """
    outputs = model.signature.outputs[0].shape[-1]
    if model.labels or outputs is None:
        return model
    numbers = tuple(map(str, range(outputs)))
    if len(class_names) != outputs or all(name in numbers for name in class_names):
        return replace(model, labels=numbers)
    said = (
        f"Nobody has said which output of the network is which class: the order of the outputs is assumed to be"
        f" {some(class_names, 5)} (names sorted as text, as torchvision's ImageFolder does); give --labels where it is"
        " another."
    )
    return replace(model, labels=tuple(class_names), findings=(*model.findings, said))


def with_box_labels(model: Model, count: int, class_names: Sequence[str]) -> Model:
    """A detector with labels, if it has none: the data's classes in their order. Raises UserError where it has another
    number of classes.

    count  of the network's classes, 0: its outputs do not say
    """
    if model.labels or not (count or class_names):
        return model
    if not class_names:
        return replace(model, labels=tuple(map(str, range(count))))
    if count and len(class_names) != count:
        raise UserError(
            f"The network has {count} classes of boxes, and the data name {len(class_names)} ({some(class_names)}):"
            " give --labels with the network's classes, in its order"
        )
    said = (
        "Nobody has said which class of the network is which of the data's: their order is assumed to be"
        f" {some(class_names, 5)}; give --labels where it is another."
    )
    return replace(model, labels=tuple(class_names), findings=(*model.findings, said))


def with_order(model: Model, class_names: Sequence[str] = ()) -> Model:
    """The model with the classes of the data in their order as labels, if it has none: numbers by their size, other
    names as the data give them. A finding says which order that is."""
    if model.labels or not class_names:
        return model
    numbered = all(NUMBER.fullmatch(name) for name in class_names)
    ordered = tuple(sorted(class_names, key=int)) if numbered else tuple(class_names)
    said = (
        f"The order of the classes is taken to be {some(ordered, 9)}: give --labels with a file of the names, the"
        " lowest first, where it is another."
    )
    return replace(model, labels=ordered, findings=model.findings if numbered else (*model.findings, said))


def about_order(opened: Model, named: Model, class_names: Sequence[str]) -> list[str]:
    """Sentences about the order of the classes that `with_labels` and `label_mapping` have assumed."""
    return [*named.findings[len(opened.findings) :], *order_of_numbers(class_names, named.labels)]


def label_mapping(class_names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """For each class of the data, its index among the model's labels.

    >>> label_mapping(["cat", "dog"], ["bird", "dog", "cat"])
    [2, 1]
    """
    known = {comparable(name): index for index, name in enumerate(labels)}
    counts = Counter(map(comparable, labels))
    if twice := [name for name in class_names if counts[comparable(name)] > 1]:
        raise UserError(f"The label '{twice[0]}' stands for several outputs of the network: give each its own name")
    missing = [name for name in class_names if comparable(name) not in known]
    if not missing:
        return [known[comparable(name)] for name in class_names]
    if _are_numbers(class_names, len(labels)):
        return [int(name) for name in class_names]
    mend = "name the class folders as the model does, or give --labels"
    if all(WORDNET_ID.fullmatch(name) for name in class_names):
        mend = "these are WordNet ids: give --labels with a file of the ids, in the order of the network's outputs"
    elif _are_numbers(class_names, len(labels) + 1):
        mend = "outputs count from 0, and these numbers seem to count from 1: give --labels with the folders' names"
    raise UserError(
        f"The data's class '{missing[0]}' ({len(missing)} of {len(class_names)} in all) is none of the model's"
        f" {len(labels)} labels ({some(labels)}): {mend}"
    )


def order_of_numbers(class_names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """A sentence where the names of classes are numbers: they are taken for output numbers, and might mean something
    else."""
    if not _are_numbers(class_names, len(labels)):
        return []
    if not {comparable(name) for name in class_names} <= {comparable(name) for name in labels}:
        return [f"The data's classes {some(class_names)} are taken for the numbers of the outputs, counted from 0."]
    by_number = sorted(class_names, key=int)
    if list(labels) != list(map(str, range(len(labels)))) or by_number == list(class_names):
        return []  # as labels of arrays, which are numbers from the start, or where both orders are the same
    return [
        f"The data's classes are taken for the numbers of the outputs: {some(by_number)}. A network that was trained on"
        f" such folders with torchvision's ImageFolder has them in another order ({some(sorted(class_names), 4)}): then"
        " give --labels."
    ]


def _are_numbers(names: Sequence[str], outputs: int) -> bool:
    return all(NUMBER.fullmatch(name) and int(name) < outputs for name in names)
