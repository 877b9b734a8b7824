"""Which operators at the end of a network stay in float, on graphs drawn by hand."""

from pocketfit.runtimes.common.mixed_ends import Operator, mixed_end

RANGES = {"pixels": (0.0, 640.0), "shares": (0.0, 1.0), "joined": (0.0, 640.0), "x": (-3.0, 3.0), "y": (-2.0, 2.0)}


def detector(*, then: tuple[Operator, ...] = (), bins: int = 16) -> list[Operator]:
    return [
        Operator(("image",), ("x",), weights=432),
        Operator(("x",), ("summed",), weights=bins),
        Operator(("summed", "strides"), ("pixels",)),
        Operator(("image",), ("y",), weights=432),
        Operator(("y",), ("shares",)),
        Operator(("pixels", "shares"), ("joined",), joins=True),
        *then,
    ]


def test_from_the_last_layers_on_all_is_in_float() -> None:
    end = mixed_end(detector(then=(Operator(("joined",), ("turned",)),)), RANGES)
    assert end.operators == (1, 2, 4, 5, 6)
    assert "The last 5 operators stay in float32" in end.sentence and "(640 and 1)" in end.sentence


def test_a_layer_ends_it() -> None:
    assert mixed_end(detector(bins=6400), RANGES).operators == (2, 4, 5)


def test_what_a_layer_reads_is_no_end() -> None:
    assert mixed_end(detector(then=(Operator(("joined",), ("z",), weights=500),)), RANGES).operators == ()


def test_ranges_that_are_near_each_other_share_a_scale() -> None:
    end = mixed_end(detector(), RANGES | {"pixels": (0.0, 4.0)})
    assert end.operators == () and end.sentence == ""


def test_what_another_layer_reads_too_stays_in_integers() -> None:
    """The shares are also the input of a layer, whose output is a second output."""
    assert mixed_end(detector(then=(Operator(("shares",), ("z",), weights=500),)), RANGES).operators == (1, 2, 5)
