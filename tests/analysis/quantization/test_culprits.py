from dataclasses import replace

import pytest

from pocketfit.analysis.quantization.culprits import Culprit, cause, check_names, culprits, keep_float
from pocketfit.analysis.quantization.headline import excluded, headline
from pocketfit.analysis.quantization.measured_files import Measured
from pocketfit.analysis.quantization.sensitivity import Channels, LayerSensitivity
from pocketfit.core.errors import UserError
from pocketfit.numerics.latency_intervals import Drop

EVEN = Channels(16, 1.5, 0, ())
UNEVEN = Channels(144, 60.2, 2, (7, 3))


def row(layer: str, share: float = 0.1, **settings) -> LayerSensitivity:
    plain = LayerSensitivity(
        layer=layer,
        weight_bits=8,
        reads="",
        weights_db=30.0,
        activations_db=35.0,
        only_db=29.0,
        all_but_db=12.0,
        gain_db=0.5,
        share=share,
        own_db=36.0,
        neighbours_db=35.0,
        drift_db=20.0,
        outputs=EVEN,
        weights=EVEN,
        inputs=EVEN,
    )
    return replace(plain, **settings)


def drop(points: float, half: float = 0.5) -> Drop:
    return Drop(points, points - half, points + half, points + half, 1000, 40)


def measured(kind: str, sqnr_db: float, **settings) -> Measured:
    found = Measured(
        name=kind,
        kind=kind,
        code="wi8ai8",
        size_bytes=1000,
        sqnr_db=sqnr_db,
        agreement=0.9,
        accuracy=0.7,
        drop=drop(2.9),
        cost=None,
        gain_db=sqnr_db - 11.0,
    )
    return replace(found, **settings)


def test_uneven_channels_of_the_tensor_are_told_where_the_tensor_costs() -> None:
    guilty = row("a", weights_db=30.0, activations_db=12.0, outputs=UNEVEN)
    assert cause(guilty, [guilty]) == "two of its 144 channels have up to 60 times the median range"
    assert cause(replace(guilty, outputs=replace(UNEVEN, wide=1)), []).startswith(
        "one of its 144 channels has 60 times"
    )


def test_what_a_reader_does_to_a_tensor_is_told() -> None:
    guilty, reader = row("a", activations_db=12.0), row("b", reads="a", inputs=replace(UNEVEN, wide=1))
    assert cause(guilty, [guilty, reader]) == "in b, one of its 144 input channels has 60 times the median weight"
    assert cause(reader, [guilty, reader]) == "one of its 144 input channels has 60 times the median weight"


def test_a_reader_of_an_uneven_tensor_says_whose_it_is() -> None:
    source, guilty = row("a", outputs=UNEVEN), row("b", reads="a", weights_db=9.0)
    assert "channels that it reads from a have up to 60 times" in cause(guilty, [source, guilty])


def test_without_uneven_channels_its_own_tensor_or_its_halves_are_told() -> None:
    assert cause(row("a", own_db=12.0), []) == "its tensor has 12 dB, its neighbours 35"
    assert cause(row("a"), []) == "its weights alone leave 30.0 dB, its tensor 35.0"
    assert (
        cause(row("add", weight_bits=None, weights_db=None, weights=None, inputs=None), []) == "no channel stands out"
    )


def test_readers_stay_in_float_too_where_the_tensor_costs() -> None:
    first = row("x", weight_bits=None, weights_db=None)
    tensor, reader, add = row("a", activations_db=12.0), row("b", reads="a"), row("add", weight_bits=None)
    layers = [first, row("stem", reads="x"), tensor, reader, add]
    assert keep_float(tensor, layers) == ("a", "b")
    assert keep_float(replace(tensor, activations_db=40.0), layers) == ("a",)
    assert keep_float(first, layers) == ("stem",), "the input stays in float with the layer that reads it"
    assert keep_float(replace(add, weights_db=None), layers) == ()


def test_culprits_come_by_their_share() -> None:
    found = culprits([row("a", 0.2), row("b", 0.5), row("c", 0.3)], 2)
    assert [(one.layer, one.share) for one in found] == [("b", 0.5), ("c", 0.3)]


def test_a_name_that_is_no_layer_is_refused_with_the_nearest() -> None:
    check_names(["features.3.conv.1"], ["features.3.conv.1"])
    with pytest.raises(UserError, match=r"no layer 'features.3.cnv.1'.*nearest are features.3.conv.1"):
        check_names(["features.3.cnv.1"], ["features.3.conv.1", "classifier.1"])
    with pytest.raises(UserError, match=r"there are stem, head, …"):
        check_names(["zzz"], ["stem", "head"])


BLAMED = (Culprit("a", 0.7, "two of its 144 channels have up to 60 times the median range", ("a",)),)
PLAIN = measured("plain", 11.0)
RUNG = measured("rung", 16.0, name="equalization", drop=drop(0.2))


def test_the_headline_is_in_points_where_they_are_more_than_noise() -> None:
    kept = measured("kept", 16.0, layer="a", cost=drop(2.1), keep_float=("a",))
    assert headline(BLAMED, [PLAIN, RUNG, kept]) == (
        "a costs 2.1 of the 2.9 points: two of its 144 channels have up to 60 times the median range;"
        " equalization took the file's loss to 0.2."
    )
    assert excluded([kept], PLAIN) == ("a",)


def test_the_headline_is_in_decibels_where_points_are_noise() -> None:
    kept = measured("kept", 16.1, layer="a", cost=drop(0.3), keep_float=("a", "b"))
    told = headline(BLAMED, [PLAIN, RUNG, kept])
    assert told.startswith("a costs 5.1 dB (the plain file has 11.0 dB, and 16.1 dB with a and b in float): two of")
    assert told.endswith("equalization took the file to 16.0 dB.")
    assert excluded([kept], PLAIN) == ("a", "b")


def test_a_loss_that_is_spread_blames_nobody() -> None:
    kept = measured("kept", 11.2, layer="a", cost=drop(0.1), keep_float=("a",))
    assert headline(BLAMED, [PLAIN, kept]).startswith(
        "No single layer is guilty of the plain file's 11.0 dB; a costs most"
    )
    assert excluded([kept], PLAIN) == ()


def test_a_file_as_good_as_float_needs_no_mending() -> None:
    fine = measured("plain", 41.0, drop=drop(0.1))
    kept = measured("kept", 49.0, layer="a", cost=drop(0.1), keep_float=("a",))
    assert headline(BLAMED, [fine, kept]).startswith("There is nothing to mend: the plain file has 41.0 dB")
    assert excluded([kept], fine) == ()
