"""The plan: its code, its canonical JSON, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings, Precision, RuntimeName
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan, canonical_json
from pocketfit.core.plan.prune import Prune, Sparsify
from pocketfit.core.plan.quantize import CorrectBias, Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Resolution
from pocketfit.core.plan.runtime_list import RUNTIMES
from pocketfit.core.plan.train import Recalibrate, Train

RATIO = st.floats(0, 1, exclude_max=True)
NAMES = st.lists(st.text(min_size=1, max_size=8), max_size=3)
prunes = st.builds(
    Prune,
    RATIO,
    st.sampled_from(["l1", "l2", "taylor", "random"]),
    st.integers(1, 32),
    st.lists(st.tuples(st.text(max_size=8).map(re.escape), RATIO), max_size=3).map(tuple),
    st.lists(st.tuples(st.text(max_size=8), st.integers(1, 99)), max_size=3).map(tuple),
    st.integers(1, 500),
)
sparsities = st.builds(
    Sparsify,
    RATIO,
    st.sampled_from(["unstructured", "2:4", "1:4"]),
    st.sampled_from(["magnitude", "movement"]),
    st.lists(st.tuples(st.text(max_size=8).map(re.escape), RATIO), max_size=3).map(tuple),
) | st.builds(Recalibrate, st.integers(2, 5000))
trains = st.builds(
    Train,
    st.integers(1, 10**6),
    st.integers(1, 512),
    st.floats(1e-6, 1),
    st.floats(0.1, 20),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.integers(0, 2**31),
    st.sampled_from(["logits", "decoupled"]),
    st.floats(0, 20),
    NAMES.map(tuple),
    st.floats(0, 1000),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 8),
)
resolutions = st.builds(Resolution, st.integers(1, 512), st.integers(1, 512))
exports = st.builds(
    ExportSettings,
    st.sampled_from(["litert", "onnxruntime", "torch"]),
    st.just("int8"),
    st.sampled_from(["int8", "uint8", "int16"]),
    NAMES.map(tuple),
    st.sampled_from(["float32", "uint8", "int8"]),
    st.sampled_from(["", "NHWC", "NCHW"]),
    st.integers(1, 1000),
    st.sampled_from(["int8", "int7", "int4"]),
    NAMES.map(tuple),
    st.sampled_from(["min-max", "moving-average", "percentile", "mse", "kl"]),
) | st.builds(
    ExportSettings,
    st.sampled_from(["litert", "onnxruntime", "torch"]),
    st.sampled_from(["float32", "float16", "dynamic-int8"]),
)
STATISTICS = st.sampled_from(["data", "batch-norm"])
SPLITS = st.sampled_from(["train", "calibration"])
on_grid = (
    st.builds(CorrectBias, STATISTICS, st.integers(1, 500))
    | st.builds(Round, st.integers(1, 10**4), st.integers(1, 500), st.integers(0, 2**31), SPLITS)
    | st.builds(
        QuantTrain,
        st.integers(1, 10**4),
        st.integers(1, 512),
        st.floats(1e-6, 1),
        st.floats(0, 1),
        SPLITS,
        st.integers(0, 2**31),
        st.floats(0, 100),
        st.floats(0, 100),
    )
)
equalizing = st.builds(Equalize, STATISTICS, st.booleans(), st.integers(1, 500))


def allowed(
    before: list[PassSettings], behind: list[PassSettings], export: ExportSettings
) -> tuple[tuple[PassSettings, ...], ExportSettings]:
    """Passes for the grid come last, and only where the file has one."""
    return (*before, *(behind if export.grid is not None else ())), export


plans = st.builds(
    allowed,
    st.lists(prunes | trains | sparsities | resolutions | equalizing, max_size=4),
    st.lists(on_grid, max_size=3, unique_by=type),
    exports,
).map(lambda given: Plan(*given))

WHOLE = Plan(
    (Prune(0.3, layers=((r"features\.1", 0.1),)), Train(200), Train(800, learning_rate=0.005), Resolution(160, 128)),
    ExportSettings("litert", "int8", keep_float=("classifier",)),
)
GOLDEN_PLAN = Plan(
    (
        Prune(0.3, "taylor", keep=(("stem", 24),)),
        Recalibrate(),
        Sparsify(0.5),
        Train(200, ema=0.9),
        Equalize(),
        CorrectBias(),
        Round(),
        QuantTrain(300),
    ),
    ExportSettings("litert", "int8", keep_float=("classifier",), weights="int4", keep_int8=("stem",), ranges="mse"),
)
GOLDEN = (
    '{"export":{"activations":"int8","calibration":200,"io":"float32","keep_float":["classifier"],"keep_int8":["stem'
    '"],"layout":"","precision":"int8","ranges":"mse","runtime":"litert","weights":"int4"},"passes":[{"criterion":"t'
    'aylor","keep":[["stem",24]],"layers":[],"multiple":8,"pass":"prune","ratio":0.3,"samples":256,"seed":0},{"pass"'
    ':"recalibrate","samples":1000,"seed":0},{"criterion":"magnitude","layers":[],"pass":"sparsify","pattern":"unstr'
    'uctured","samples":256,"seed":0,"sparsity":0.5},{"alpha":0.9,"batch_size":64,"beta":8.0,"distillation":"logits"'
    ',"ema":0.9,"feature_weight":100.0,"features":[],"guarded":true,"learning_rate":0.02,"optimizer":"muon","pass":"'
    'train","seed":0,"share":1.0,"steps":200,"temperature":4.0,"views":0},{"absorb":true,"pass":"equalize","samples"'
    ':200,"statistics":"data"},{"pass":"correct-bias","samples":200,"statistics":"data"},{"pass":"round","samples":2'
    '00,"seed":0,"split":"calibration","sweeps":20},{"batch_size":32,"guarded":true,"inner":0.0,"labels":0.0,"layerw'
    'ise":0.0,"learning_rate":0.002,"pass":"quant-train","seed":0,"split":"train","steps":300}],"plan_version":1}'
)


def test_golden_bytes() -> None:
    """Journals, file names and plan.json of users stand on these bytes: a change needs a new plan_version."""
    assert canonical_json(GOLDEN_PLAN.to_json()) == GOLDEN
    assert GOLDEN_PLAN.code == "prune30k1-bn-sparse50.200-eq-bias-round-qat300-wi4ai8-mse-mix1-wide1"
    assert GOLDEN_PLAN.file_stem == f"{GOLDEN_PLAN.code}-f2bd0181"
    assert Plan.from_json(json.loads(GOLDEN)) == GOLDEN_PLAN


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        (Plan((), ExportSettings("litert")), "fp32"),
        (WHOLE, "prune30.200.800-r160x128-wi8ai8-mix1"),
        (Plan((), ExportSettings("litert", "float16")), "fp16"),
        (Plan((), ExportSettings("litert", "dynamic-int8")), "dwi8"),
        (Plan((), ExportSettings("onnxruntime", "int8", "uint8")), "wi8au8"),
        (Plan((), ExportSettings("onnxruntime", "int8", io="uint8", layout="NHWC")), "wi8ai8-iou8-nhwc"),
        (Plan((Train(50),), ExportSettings("litert")), "train.50-fp32"),
        (Plan((Resolution(96, 96), Prune(0.255)), ExportSettings("litert")), "r96-prune26-fp32"),
    ],
)
def test_codes(plan: Plan, code: str) -> None:
    assert plan.code == code


@given(plans)
def test_json_both_ways(plan: Plan) -> None:
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.hash == plan.hash
    assert again.file_stem == plan.file_stem


@given(plans, plans)
def test_equal_plans_and_equal_hashes_are_the_same(one: Plan, other: Plan) -> None:
    assert (one.hash == other.hash) == (canonical_json(one.to_json()) == canonical_json(other.to_json()))
    assert one != other or one.code == other.code


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    """The golden plan's JSON with one place changed."""
    data = json.loads(GOLDEN)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], r"it is \[\]: give an object with 'passes' and 'export'"),
        ({"plan_version": 1, "passes": []}, "'export' is missing"),
        (changed("plan_version", value=2), "'plan_version' is 2: this pocketfit reads plans of version 1"),
        (changed("plan_version", value=None), "'plan_version' is null"),
        (changed("plan_version", value=True), "'plan_version' is true"),
        (changed("teacher", value="x"), "'teacher' is no known key: there are export"),
        (changed("passes", value={"prune": 1}), "'passes' is no list of objects"),
        (changed("passes", value=["prune"]), r"'passes\[0\]' is \"prune\": give an object with the key 'pass'"),
        (changed("export", value="litert"), "'export' is \"litert\": give an object"),
        (
            changed("passes", 0, "pass", value="distort"),
            r"'passes\[0\].pass' is \"distort\": known passes are prune, sp",
        ),
        (changed("passes", 0, "pass", value=["prune"]), r"'passes\[0\].pass' is \[\"prune\"\]: known passes are"),
        (changed("passes", 0, "rate", value=0.1), r"'passes\[0\].rate' is no known key: there are criterion, keep"),
        (changed("export", "bits", value=4), "'export.bits' is no known key"),
        (changed("passes", 1, value={"pass": "train"}), r"'passes\[1\].steps' is missing"),
        (changed("passes", 0, "ratio", value="much"), r"'passes\[0\].ratio' is \"much\": give a number"),
        (changed("passes", 0, "ratio", value=True), r"'passes\[0\].ratio' is true: give a number"),
        (changed("passes", 0, "ratio", value=1.0), r"'passes\[0\].ratio' is 1.0: give a number from 0 up to, but not"),
        (changed("passes", 0, "ratio", value=float("nan")), r"'passes\[0\].ratio' is not finite: give a number"),
        (changed("passes", 0, "layers", value=[["a", 0.1, 2]]), r"'passes\[0\].layers\[0\]' is .*: give a list of 2"),
        (
            changed("passes", 0, "layers", value=[["a", 1.5]]),
            r"'passes\[0\].layers\[0\]\[1\]' is 1.5: give a number from 0",
        ),
        (changed("passes", 0, "layers", value=[["(", 0.5]]), r"passes\[0\]: .\(. is no regular expression for names"),
        (
            changed("passes", 0, "multiple", value=0),
            r"'passes\[0\].multiple' is 0: give a number from 1 up to 1,000,000",
        ),
        (
            changed("passes", 0, "criterion", value="l3"),
            r"passes\[0\]: There is no pruning criterion .l3.: known are l1",
        ),
        (changed("passes", 0, "criterion", value="a b:c"), r"passes\[0\]: There is no pruning criterion .a b:c."),
        (changed("passes", 3, "steps", value=1.5), r"'passes\[3\].steps' is 1.5: give a whole number"),
        (changed("passes", 3, "steps", value=0), r"'passes\[3\].steps' is 0: give a number from 1"),
        (changed("passes", 3, "share", value=0), r"'passes\[3\].share' is 0: give a number above 0 up to 1"),
        (changed("passes", 3, "ema", value=1.0), r"'passes\[3\].ema' is 1.0"),
        (changed("passes", 3, "guarded", value=1), r"'passes\[3\].guarded' is 1: give true or false"),
        (
            changed("passes", 3, "learning_rate", value=-1),
            r"'passes\[3\].learning_rate' is -1: give a number above 0 up to",
        ),
        (
            changed("passes", 3, "views", value=10**9),
            r"'passes\[3\].views' is 1000000000: give a number from 0 up to 1,0",
        ),
        (changed("passes", 3, "batch_size", value=10**12), r"'passes\[3\].batch_size' is 1000000000000: give a number"),
        (changed("passes", 3, "seed", value=10**400), r"'passes\[3\].seed' is an integer of more than 64 bits"),
        (
            changed("passes", 0, "keep", value=[["stem", 0]]),
            r"'passes\[0\].keep\[0\]\[1\]' is 0: give a number from 1$",
        ),
        (
            changed("passes", 0, "keep", value=[["stem", 0.5]]),
            r"'passes\[0\].keep\[0\]\[1\]' is 0.5: give a whole number",
        ),
        (changed("passes", 1, "samples", value=1), r"'passes\[1\].samples' is 1: give a number from 2"),
        (changed("passes", 2, "sparsity", value=1.0), r"'passes\[2\].sparsity' is 1.0"),
        (
            changed("passes", 2, "pattern", value="3:4"),
            r"'passes\[2\].pattern' is \"3:4\": give one of \"unstructured\"",
        ),
        (
            changed("passes", 3, value={"pass": "resolution", "height": -1, "width": 128}),
            r"'passes\[3\].height' is -1: give a number from 1 up to 16,384",
        ),
        (changed("export", "precision", value="int3"), '\'export.precision\' is "int3": give one of "float32"'),
        (changed("export", "keep_float", value="classifier"), "'export.keep_float' is \"classifier\": give a list"),
        (changed("export", "runtime", value=None), "'export.runtime' is null: give a text"),
        (changed("export", "runtime", value="../../x"), '\'export.runtime\' is "../../x": give one of "litert"'),
        (changed("export", "calibration", value=-5), "'export.calibration' is -5: give a number from 1"),
        (
            {**changed("export", "io", value="uint8"), "export": {"runtime": "litert", "io": "uint8"}},
            "export: --io uint8 needs static int8: a float32 file takes float32 inputs",
        ),
    ],
)
def test_refusals_are_sentences(data: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^x/plan.json can't be read: {sentence}"):
        Plan.from_json(data, "x/plan.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from([("passes",), ("export",), ("plan_version",)])
    | st.tuples(st.just("passes"), st.integers(0, 3), st.sampled_from(["pass", "ratio", "layers", "steps", "height"]))
    | st.tuples(st.just("export"), st.sampled_from(["runtime", "precision", "io", "keep_float", "layout"])),
    JSON,
)
def test_any_change_is_read_or_refused_in_a_sentence(path: tuple[str | int, ...], value: Any) -> None:
    try:
        plan = Plan.from_json(changed(*path, value=value))
    except UserError as error:
        assert str(error)
    else:
        assert Plan.from_json(plan.to_json()) == plan


def test_the_runtimes_that_a_plan_may_name_are_those_there_are() -> None:
    (rule,) = get_args(RuntimeName)[1:]
    assert rule.values is RUNTIMES


def test_settings_are_checked_when_they_are_made() -> None:
    for make in (lambda: Prune(1.0), lambda: Prune(-0.1), lambda: Prune(0.1, layers=((".", 2.0),)), lambda: Train(0)):
        with pytest.raises(UserError):
            make()
    with pytest.raises(UserError, match="Unknown precision 'int4'"):
        ExportSettings("litert", "int4")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("passes", "precision", "sentence"),
    [
        ((Round(),), "float16", "The pass 'round' works for the grid of a quantized file, and a float16 file has none"),
        ((Train(5), CorrectBias()), "float32", "The pass 'bias' works for the grid of a quantized file, and a float32"),
        ((Round(), Round(seed=1)), "int8", "A plan rounds its weights once"),
        ((Equalize(), Round(), Train(5)), "int8", "'train' behind 'round' would take the weights off the grid again"),
        ((QuantTrain(5), Prune(0.5)), "int8", "'prune' behind 'qat5' would take the weights off the grid again"),
        ((CorrectBias(), Equalize()), "int8", "'equalize' behind 'bias' would take the weights off the grid again"),
    ],
)
def test_passes_for_the_grid_need_one_and_come_last(
    passes: tuple[PassSettings, ...], precision: Precision, sentence: str
) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        Plan(passes, ExportSettings("litert", precision))
    assert Plan((Train(5), Equalize(), Round(), QuantTrain(5)), ExportSettings("litert", "weight-only"))


@pytest.mark.parametrize("wrong", [{"layerwise": -0.1}, {"inner": -1.0}, {"labels": 1.5}, {"learning_rate": 0.0}])
def test_shares_of_the_loss_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(UserError, match=f"^QuantTrain can't have {name}=.*: give a number"):
        QuantTrain(1, **wrong)  # type: ignore[arg-type]
