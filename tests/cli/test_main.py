"""The command line: exit codes, one sentence for bad input, one JSON object, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from pocketfit import zoo
from pocketfit.cli import main
from pocketfit.cli.arguments import Teacher
from pocketfit.cli.commands import choose
from pocketfit.cli.commands import fit as fit_command
from pocketfit.core.errors import Stopped, UserError
from pocketfit.sources.models.open_model import open_model
from tests.report.run import sample_run

PATHS = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
VERBS = (
    "train",
    "fit",
    "choose",
    "apply",
    "measure",
    "compare",
    "inspect",
    "explain",
    "export",
    "sensitivity",
    "costs",
    "report",
    "doctor",
)
FACTORY = """
import torch
def net(classes: int = 2):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                               torch.nn.Linear(8, classes))
def three():
    return net(3)
def broken():
    raise RuntimeError("the weights are at home")
def no_network():
    return 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sound data, weights and a factory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.integers(0, 256, (200, 16, 16, 3), np.uint8), y=np.arange(200) % 2)
    torch.save(zoo.build("mobilenet_v2", width=0.25, classes=2).state_dict(), tmp_path / "good.pth")
    (tmp_path / "nets_of_cli_test.py").write_text(FACTORY)
    return tmp_path


def invoked(*arguments: str) -> Result:
    return CliRunner().invoke(main.main, list(arguments))


def fit(*more: str, model: str = "mobilenet_v2", data: str = "data.npz", weights: str | None = "good.pth") -> Result:
    given = () if weights is None else ("--weights", weights)
    return invoked("fit", model, *given, "--data", data, "-o", "out", "--runtime", "onnxruntime", *more)


def refused(result: Result, *words: str) -> str:
    """Exit code 2, one line on stderr with these words in it, nothing on stdout, no output folder."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in line
    for word in words:
        assert word in line
    assert not Path("out").exists()
    assert not list(Path.cwd().glob("crash-*"))
    return line


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PATHS},
    )


def test_help_is_quick() -> None:
    """Best of three: the bar is 0.3 s on a quiet machine."""
    times = []
    for _ in range(3):
        started = time.monotonic()
        done = python("-m", "pocketfit", "--help")
        times.append(time.monotonic() - started)
        assert done.returncode == 0 and "Make a trained neural network fit a device" in done.stdout
    assert min(times) < 0.5


def test_what_needs_no_network_loads_no_torch(here: Path) -> None:
    code = "import sys; from pocketfit.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print(*[m for m in ('torch', 'onnxruntime', 'ai_edge_litert', 'PIL', 'rich') if m in sys.modules])"
    for arguments in (("--help",), ("fit", "--help"), ("--version",)):
        done = python("-c", code, *arguments)
        assert done.stdout.splitlines()[-1] == ""
    done = python("-c", code, "choose", "out")
    assert "torch" not in done.stdout and "no journal.jsonl" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = invoked(verb, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout and result.stdout.startswith("Usage: main " + verb)
    command = main.main.commands[verb]
    assert command.help and all(
        p.help for p in command.params if isinstance(p, click.Option) and p.name not in ("seed", "threads", "metric")
    )


def test_the_verbs_are_those_of_the_readme() -> None:
    assert set(main.main.commands) == set(VERBS)


# --- bad input: each with exit code 2 and one sentence, before anything is written ---


def test_missing_weights(here: Path) -> None:
    refused(fit(weights="nowhere.pth"), "nowhere.pth")


def test_a_layer_to_keep_in_float_that_is_not_there(here: Path) -> None:
    refused(fit("--keep-float", "features.3.conv.9"), "features.3.conv.9", "no layer with weights", "features.3.conv.")


def test_missing_data(here: Path) -> None:
    refused(fit(data="nowhere"), "nowhere", "give a folder of images, by class, with input/ and target/, or")


def test_what_cannot_be_pruned_so(here: Path) -> None:
    Path("scores_of_cli_test.py").write_text(
        "import numpy as np\n"
        "def nothing(group, statistics):\n    return np.full(len(group.ids), np.nan)\n"
        "def length(group, statistics):\n    return np.abs(statistics.makes()).max(1)\n"
    )
    sys.path.insert(0, str(here))
    refused(fit("--ratio", "nosuch.*=0.5"), "nosuch", "matches no")
    refused(fit("--ratio", "features.*=1"), "--ratio 'features.*=1'", "not including, 1")
    refused(fit("--ratio", "0.5"), "REGEX=SHARE")
    refused(fit("--criterion", "l3"), 'There is no pruning criterion "l3"')
    refused(fit("--criterion", "scores_of_cli_test:nothing"), "'scores_of_cli_test:nothing' gives NaN", "features.")
    refused(fit("--criterion", "scores_of_cli_test:missing"), "has no function missing")
    plan = {"plan_version": 1, "export": {"runtime": "onnxruntime"}}
    plan["passes"] = [{"pass": "prune", "ratio": 0.5, "criterion": "scores_of_cli_test:length"}]
    Path("made").mkdir()  # beside the plan no code is looked for
    Path("made/plan.json").write_text(json.dumps(plan))
    given = ("apply", "made/plan.json", "mobilenet_v2", "--weights", "good.pth", "--data", "data.npz", "-o", "out")
    refused(invoked(*given), "scores_of_cli_test:length", "--allow-code")
    assert invoked(*given, "--allow-code").exit_code == 0


def test_data_or_no_data(here: Path) -> None:
    refused(fit("--no-data"), "--data", "--no-data", "not both")
    given = ("fit", "mobilenet_v2", "--weights", "good.pth", "-o", "out")
    refused(invoked(*given), "--no-data")
    refused(invoked(*given, "--no-data", "--max-drop", "1pt"), "cannot be checked without data")


def test_a_teacher_that_does_not_fit(here: Path) -> None:
    """Of other classes, for another input, without weights, not there: for fit and for apply."""
    plan = {"plan_version": 1, "passes": [], "export": {"runtime": "onnxruntime"}}
    Path("float.json").write_text(json.dumps(plan))
    torch.save(zoo.build("mobilenet_v2", width=0.25, classes=3).state_dict(), "three.pth")
    torch.save(zoo.build("efficientnet_lite0", classes=2).state_dict(), "lite.pth")
    for options, words in (
        (("nets_of_cli_test:three",), ("teacher knows 3 classes and the student 2",)),
        (("mobilenet_v2", "--teacher-weights", "three.pth"), ("teacher knows 3 classes",)),
        (("efficientnet_lite0", "--teacher-weights", "lite.pth"), ("its mean is", "the student's 0.485")),
        (("mobilenet_v2",), ("--teacher-weights",)),
        (("nowhere",), ("'nowhere' is no model folder",)),
        (("nets_of_cli_test:broken",), ("the weights are at home",)),
    ):
        refused(fit("--teacher", *options), *words)
    given = ("apply", "float.json", "mobilenet_v2", "--weights", "good.pth", "--data", "data.npz", "-o", "out")
    refused(invoked(*given, "--teacher", "nets_of_cli_test:three"), "teacher knows 3 classes")
    refused(fit("--teacher-weights", "good.pth"), "--teacher-weights is for a teacher")


def test_a_factory_as_teacher_sees_what_the_student_sees(here: Path) -> None:
    student = open_model("mobilenet_v2", weights=here / "good.pth")
    teacher = Teacher("nets_of_cli_test:net").open(student)
    assert teacher is not None and teacher.preprocess == student.preprocess
    assert teacher.signature.inputs == student.signature.inputs
    assert Teacher().open(student) is None


def test_missing_model(here: Path) -> None:
    refused(fit(model="nonet", weights=None), "nonet", "mobilenet_v2")


def test_weights_of_another_architecture(here: Path) -> None:
    torch.save(zoo.build("resnet18", width=0.25, classes=2).state_dict(), "resnet.pth")
    refused(fit(weights="resnet.pth"), "resnet.pth", "mobilenet_v2")


def test_a_pickle(here: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("evil was here",)

    Path("model.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save(zoo.build("mobilenet_v2", width=0.25, classes=2), "whole.pth")
    for name in ("model.pkl", "whole.pth"):
        refused(fit(weights=name), name)
        assert not Path("evil was here").exists()
    assert "state_dict" in fit(weights="whole.pth").stderr, "advice how to save it instead"


def test_a_truncated_file(here: Path) -> None:
    whole = Path("good.pth").read_bytes()
    Path("torn.pth").write_bytes(whole[: len(whole) // 2])
    refused(fit(weights="torn.pth"), "torn.pth")
    Path("torn.npz").write_bytes(Path("data.npz").read_bytes()[:5000])
    refused(fit(data="torn.npz"), "torn.npz")


def test_one_nan_among_the_weights(here: Path) -> None:
    state = zoo.build("mobilenet_v2", width=0.25, classes=2).state_dict()
    state["features.1.conv.0.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, "nan.safetensors")
    refused(fit(weights="nan.safetensors"), "nan.safetensors", "features.1.conv.0.0.weight")


def test_data_without_pictures(here: Path) -> None:
    for name in ("data/a", "data/b"):
        Path(name).mkdir(parents=True)
        Path(name, "notes.txt").write_text("no picture")
    refused(fit(data="data"), "data")
    Path("empty").mkdir()
    refused(fit(data="empty"), "empty")


def test_too_little_data(here: Path) -> None:
    for name in ("a", "b"):
        Path("few", name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (i, len(name), 9 * i)).save(f"few/{name}/{i}.png")
    Path("names").write_text("a\nb\n")
    refused(fit("--labels", "names", data="few"), "few", "4 samples are too few", "give a hundred or more")


def test_classes_that_the_model_does_not_know(here: Path) -> None:
    Path("names").write_text("cat\ndog\n")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 8, 8, 3), np.uint8)
    np.savez("birds.npz", x=pixels, y=np.arange(200) % 2, class_names=["cat", "owl"])
    refused(fit("--labels", "names", data="birds.npz"), "'owl'", "cat, dog", "--labels")
    np.savez("three.npz", x=pixels, y=np.arange(200) % 3, class_names=["cat", "owl", "fox"])
    refused(fit(data="three.npz"), "'cat'", "2 labels (0, 1", "--labels")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-size", "1MB", "--max-download", "2MB"), ("--max-download 2MB", "--max-size 1MB", "contradict")),
        (("--max-size", "3XB"), ("--max-size '3XB'", "MiB", "for example 3MB")),
        (("--max-size", "-3MB"), ("--max-size",)),
        (("--max-size", "0MB"), ("--max-size '0MB'", "never be met")),
        (("--max-latency", "60"), ("--max-latency '60'", "60ms")),
        (("--max-latency", "p42:60ms"), ("p42", "p95")),
        (("--max-drop", "1"), ("--max-drop '1'", "1pt")),
        (("--min-accuracy", "120%"), ("--min-accuracy '120%'", "90%")),
        (("--max-time", "10"), ("--max-time '10'", "10min")),
        (("--max-trials", "0"), ("--max-trials 0", "from 1")),
        (("--runtime", "tensorrt"), ("tensorrt", "litert", "onnxruntime")),
        (("--runtime", ","), ("--runtime",)),
        (("--metric", "loss"), ("loss", "package.module:function")),
        (("--metric", "nowhere.to:be_found"), ("nowhere.to",)),
        (("--preprocess", "nowhere.json"), ("nowhere.json",)),
        (("--labels", "nowhere.txt"), ("nowhere.txt",)),
        (("--input-shape", "3by4"), ("3by4", "3x224x224")),
    ],
)
def test_limits_and_settings(here: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(fit(*options), *words)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("broken", ("nets_of_cli_test:broken", "the weights are at home")),
        ("no_network", ("gives a int", "torch.nn.Module")),
        ("nobody", ("has no function nobody",)),
    ],
)
def test_a_factory_that_raises(here: Path, factory: str, words: tuple[str, ...]) -> None:
    refused(fit(model=f"nets_of_cli_test:{factory}", weights=None), *words)
    refused(invoked("train", f"nets_of_cli_test:{factory}", "--data", "data.npz", "-o", "out"), *words)


def test_a_folder_with_other_things_is_left_alone(here: Path) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")
    Path("file").write_text("a file")
    for out, arguments in (
        ("mine", ("fit", "mobilenet_v2", "--weights", "good.pth")),
        ("file", ("fit", "mobilenet_v2", "--weights", "good.pth")),
        ("mine", ("train", "mobilenet_v2", "--weights", "good.pth")),
        ("file", ("train", "mobilenet_v2", "--weights", "good.pth")),
    ):
        result = invoked(*arguments, "--data", "data.npz", "-o", out)
        refused(result, out, "nothing was changed", "give another output folder")
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.tex"]
    assert Path("file").read_text() == "a file"


def test_bad_input_of_the_other_verbs(here: Path) -> None:
    Path("note.txt").write_text("hello")
    Path("fake.onnx").write_bytes(b"not a network")
    Path("fake.tflite").write_bytes(b"not a network")
    Path("plan.json").write_text('{"plan_version": 1}')
    Path("empty").mkdir()
    published = ("mobilenet_v2", "--weights", "good.pth")
    for arguments, word in (
        (("choose", "empty"), "empty"),
        (("report", "empty"), "empty"),
        (("choose", "nowhere"), "nowhere"),
        (("measure", "nowhere.onnx"), "nowhere.onnx"),
        (("measure", "note.txt"), "note.txt"),
        (("measure", "fake.onnx"), "fake.onnx"),
        (("measure", "fake.tflite"), "fake.tflite"),
        (("measure", "fake.onnx", "--against", "fake.tflite"), "different runtimes"),
        (("measure", "fake.onnx", "--data", "data.npz"), "--preprocess"),
        (("inspect", "fake.onnx"), "fake.onnx"),
        (("inspect", "fake.tflite"), "fake.tflite"),
        (("inspect", "nowhere.tflite"), "nowhere.tflite"),
        (("inspect", "nonet"), "nonet"),
        (("compare", "fake.onnx", "nowhere.onnx", "--data", "data.npz"), "nowhere.onnx"),
        (("apply", "plan.json", "mobilenet_v2", "--data", "data.npz", "-o", "out"), "plan"),
        (("apply", "nowhere.json", "mobilenet_v2", "--data", "data.npz", "-o", "out"), "nowhere.json"),
        (("apply", "note.txt", "mobilenet_v2", "--data", "data.npz", "-o", "out"), "note.txt"),
        (("train", "mobilenet_v2", "--data", "data.npz", "-o", "out", "--max-time", "soon"), "soon"),
        (("train", *published, "--width", "0.5", "--data", "data.npz", "-o", "out"), "--width"),
    ):
        refused(invoked(*arguments), word)


def test_usage_errors_exit_with_2(here: Path) -> None:
    for arguments in (("fit",), ("fit", "m", "--threads", "0"), ("nosuchverb",), ("fit", "m", "--prefer", "beauty")):
        result = invoked(*arguments)
        assert result.exit_code == 2 and result.stdout == ""
        assert "Error: " in result.stderr and "Traceback" not in result.stderr


def test_bad_input_in_a_process_of_its_own_is_one_line_too(here: Path) -> None:
    """No warning of a library beside the sentence, no traceback of a thread."""
    Path("model.pkl").write_bytes(pickle.dumps(Path))
    for weights in ("nowhere.pth", "model.pkl"):
        arguments = ("fit", "mobilenet_v2", "--weights", weights, "--data", "data.npz", "-o", "out")
        done = python("-m", "pocketfit", *arguments, "--max-size", "1MB")
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1 and weights in done.stderr
    assert not Path("out").exists()


# --- what is printed, and exit codes ---


def test_json_is_one_object_also_for_errors(here: Path) -> None:
    result = fit("--json", "--max-size", "3XB")
    assert result.exit_code == 2
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["exit_code"] == 2 and "3XB" in json.loads(line)["error"]
    inspected = invoked("inspect", "mobilenet_v2", "--json")
    assert inspected.exit_code == 0
    assert json.loads(inspected.stdout)["totals"]["params"] == 3_504_872
    assert "layers" in invoked("inspect", "mobilenet_v2").stdout


def test_our_own_fault_leaves_a_crash_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("who would have thought")

    monkeypatch.setattr(choose, "choose", fault)
    result = invoked("choose", "out", "--max-size", "1MB", "--json")
    assert result.exit_code == 3
    (crash,) = here.glob("crash-*.txt")
    (line,) = result.stderr.splitlines()
    assert crash.name in line and "Traceback" not in line
    assert json.loads(result.stdout)["exit_code"] == 3
    text = crash.read_text()
    assert "who would have thought" in text and "Traceback" in text and "pocketfit 0" in text


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(Stopped("The best so far is in out"), 130, "best so far"), (KeyboardInterrupt(), 130, "Stopped"),
     (UserError("No such thing"), 2, "No such thing")],
)  # fmt: skip
def test_exit_codes(here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str) -> None:
    def stop(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(fit_command, "fit", stop)
    result = fit()
    assert result.exit_code == code and words in result.stderr and result.stdout == ""


@pytest.fixture
def run(here: Path) -> Path:
    """A finished run: a journal with made-up figures (fixtures, not measurements)."""
    return sample_run.write(here / "out")


def test_choose_exits_with_0_or_1_and_writes_nothing(run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    met = invoked("choose", "out", "--json")
    assert met.exit_code == 0 and json.loads(met.stdout)["status"] == "met"
    other = invoked("choose", "out", "--max-size", "1.5MB", "--max-drop", "5pt", "--prefer", "size", "--json")
    assert other.exit_code == 0
    assert json.loads(other.stdout)["chosen"]["code"] != json.loads(met.stdout)["chosen"]["code"]
    missed = invoked("choose", "out", "--max-size", "1kB", "--json")
    assert missed.exit_code == 1 and json.loads(missed.stdout)["shortfall"]["binding"] == ["size"]
    shown = invoked("choose", "out", "--max-size", "1kB")
    assert shown.exit_code == 1 and "Why the limits are not met" in shown.stdout
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_choose_keeps_the_limits_that_are_not_given(run: Path) -> None:
    data = json.loads(invoked("choose", "out", "--max-size", "2MB", "--json").stdout)
    texts = {limit["quantity"]: limit["text"] for limit in data["budget"]["limits"]}
    assert texts == {"size": "2MB", "latency": "0.6x", "drop": "1pt", "memory": "40MB"}


def test_choose_on_a_copied_and_shuffled_journal_is_the_same(run: Path) -> None:
    wanted = invoked("choose", "out", "--json").stdout
    lines = (run / "journal.jsonl").read_text().splitlines()
    for seed in range(5):
        copy = run.parent / f"copy{seed}"
        copy.mkdir()
        random.Random(seed).shuffle(lines)
        (copy / "journal.jsonl").write_text("\n".join(lines) + "\n")
        assert invoked("choose", copy.name, "--json").stdout == wanted


def test_report_is_written_and_named(run: Path) -> None:
    result = invoked("report", "out", "--json")
    assert result.exit_code == 0
    assert Path(json.loads(result.stdout)["report"]).read_text().startswith("<!doctype html>")
    assert invoked("report", "out").stdout.strip().endswith("report.html")
