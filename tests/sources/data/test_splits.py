import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.samples import SPLITS
from pocketfit.sources.data import splits

CONTENTS = [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(20_000)]


def shares(given):
    found = [splits.assign(content, 3, given) for content in CONTENTS]
    return {name: found.count(name) / len(found) for name in SPLITS}


def test_the_shares():
    for given_parts, expected in (
        ((), (0.70, 0.05, 0.10, 0.15)),
        (("verdict",), (0.85, 0.05, 0.10, 0.0)),
        (("search",), (0.80, 0.05, 0.0, 0.15)),
        (("search", "verdict"), (0.95, 0.05, 0.0, 0.0)),
    ):
        found = shares(given_parts)
        assert np.allclose([found[name] for name in SPLITS], expected, atol=0.01), given_parts


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0, 2**40))
def test_position_is_a_share_and_follows_from_content_and_seed_alone(content, seed):
    assert 0 <= splits.position(content, seed) < 1
    assert splits.position(content, seed) == splits.position(content, seed)


def test_a_frozen_example_so_that_no_release_moves_a_sample():
    found = [splits.assign(f"{i:064x}", 0) for i in range(12)]
    assert " ".join(found) == ("train train search train train train search train train train verdict verdict")
    assert [splits.assign(f"{i:064x}", 1) for i in range(12)] != found


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(0, 5), st.data())
def test_every_beginning_of_the_order_is_about_stratified(classes, seed, data):
    labels = np.array(classes)
    rows = splits.order(CONTENTS[: len(labels)], labels, seed)
    assert sorted(rows.tolist()) == list(range(len(labels)))
    n = data.draw(st.integers(1, len(labels)))
    for label in set(classes):
        owed = n * classes.count(label) / len(classes)
        # Systematic sampling: each class is off by less than half a row for itself and half for each other class.
        assert abs((labels[rows[:n]] == label).sum() - owed) <= 0.5 + len(set(classes)) / 2


def test_adding_samples_keeps_the_order_inside_a_class():
    few, many = CONTENTS[:100], CONTENTS[:150]
    first = [row for row in splits.order(many, np.zeros(150, np.int64), 0).tolist() if row < 100]
    assert first == splits.order(few, np.zeros(100, np.int64), 0).tolist()
