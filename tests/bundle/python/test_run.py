"""run.py as an app's engineer runs it: an isolated Python that knows neither pocketfit nor torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketfit.bundle.python import run as run_template
from pocketfit.core.preprocess import Preprocess
from pocketfit.sources.image_preprocess import to_tensor
from tests.bundle.tiny_networks import BGR, GREY, LABELS, LINE, RGB, samples_for, weights

Make = Callable[..., Path]
# Python's isolated mode plus a lock on what a bundle must not need; run.py is started as the main program.
ALONE = """
import runpy, sys
class Lock:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pocketfit", "torch", "tensorflow", "onnx"} | set(LOCKED):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
LOCKED = sys.argv[1].split(",")
sys.meta_path.insert(0, Lock())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(
    bundle: Path, *arguments: str | Path, stdin: str = "", locked: str = "", at: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-W", "error", "-c", ALONE, locked, str(bundle / "run.py"), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60, cwd=at)
    done.stderr = done.stderr.replace("INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n", "")  # native code's
    return done


def photo(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 31)) -> Path:
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], channels), np.uint8)
    Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels).save(path)
    return path


def expected(path: Path, preprocess: Preprocess) -> np.ndarray:
    """Probabilities of the tiny network, by formula."""
    weight, bias = weights(preprocess.channels)
    logits = weight @ to_tensor(path, preprocess, "NCHW").mean(axis=(0, 2, 3)) + bias
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
@pytest.mark.parametrize("preprocess", [RGB, GREY, BGR, LINE], ids=["rgb", "grey", "bgr", "line"])
def test_answers_are_the_networks(runtime: str, preprocess: Preprocess, make: Make, tmp_path: Path) -> None:
    bundle = make(runtime, preprocess)
    picture = photo(tmp_path / "with alpha.png", "RGBA")
    done = run(bundle, "--json", picture)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    wanted = expected(picture, preprocess)
    assert found["file"] == str(picture)
    assert [best["label"] for best in found["top"]] == [LABELS[i] for i in np.argsort(-wanted)[:5]]
    assert [best["probability"] for best in found["top"]] == pytest.approx(sorted(wanted)[::-1][:5], abs=1e-4)
    assert found["preprocess_ms"] > 0 and found["inference_ms"] > 0


@pytest.mark.parametrize(
    ("runtime", "io", "preprocess"),
    [
        ("onnxruntime", "float32", RGB),
        ("onnxruntime", "float32", LINE),
        ("onnxruntime", "uint8", RGB),
        ("onnxruntime", "int8", BGR),
        ("onnxruntime", "uint8", GREY),
        ("litert", "float32", GREY),
        ("litert", "int8", RGB),
    ],
)
def test_selftest_passes_and_quantized_answers_are_near(
    runtime: str, io: str, preprocess: Preprocess, make: Make, tmp_path: Path
) -> None:
    bundle = make(runtime, preprocess, io)
    done = run(bundle, "--selftest")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("PASS")
    picture = photo(tmp_path / "photo.png")
    best = json.loads(run(bundle, "--json", "--top", "1", picture).stdout)["top"]
    assert len(best) == 1
    assert best[0]["probability"] == pytest.approx(expected(picture, preprocess).max(), abs=0.02)


def test_selftest_names_a_changed_file(make: Make) -> None:
    bundle = make("onnxruntime")
    with (bundle / "tiny.onnx").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x55")
    (bundle / "golden" / "sample1.png").unlink()
    done = run(bundle, "--selftest")
    assert done.returncode == 1
    assert "FAIL: tiny.onnx was changed" in done.stdout
    assert "FAIL: golden/sample1.png is missing" in done.stdout
    assert "PASS" not in done.stdout


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """As somebody would who knows how the seal is made."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    for name in manifest["files"]:
        if (bundle / name).is_file():
            manifest["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    manifest["seal"] = run_template.seal(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_selftest_finds_other_preprocessing_and_other_answers(runtime: str, make: Make) -> None:
    bundle = make(runtime)
    rewrite(bundle, lambda manifest: manifest["preprocess"].update(mean=[0.5, 0.456, 0.406]))
    done = run(bundle, "--selftest")
    assert done.returncode == 1
    assert "golden/chart.png: the tensor differs by up to" in done.stdout

    output = bundle / "golden" / "sample0.output.npy"
    np.save(output, np.load(output) + np.float32(0.5))
    rewrite(bundle, lambda manifest: manifest["preprocess"].update(mean=list(RGB.mean)))
    done = run(bundle, "--selftest")
    assert done.returncode == 1
    assert "golden/sample0.png: the output differs by up to 0.5" in done.stdout
    assert "tensor" not in done.stdout


def test_integers_must_be_equal_here_and_near_elsewhere(make: Make) -> None:
    bundle = make("onnxruntime", RGB, "uint8")
    output = bundle / "golden" / "sample0.output.npy"
    moved = np.load(output)
    moved[0, 0] += 1
    np.save(output, moved)
    rewrite(bundle, lambda manifest: None)
    done = run(bundle, "--selftest")
    assert (done.returncode, "differs by up to 1 steps (allowed 0)" in done.stdout) == (1, True)
    rewrite(bundle, lambda manifest: manifest["environment"].update(processor="another one"))
    assert run(bundle, "--selftest").returncode == 0


def _other_file(bundle: Path) -> None:
    (bundle.parent / "other.onnx").write_bytes((bundle / "tiny.onnx").read_bytes())
    rewrite(bundle, lambda manifest: manifest["file"].update(name="../other.onnx"))


def _linked_outside(bundle: Path) -> None:
    (bundle / "tiny.onnx").rename(bundle.parent / "elsewhere.onnx")
    (bundle / "tiny.onnx").symlink_to(bundle.parent / "elsewhere.onnx")


def _evil_preprocess(bundle: Path) -> None:
    with (bundle / "preprocess.py").open("a") as file:
        file.write("\nPath('evil').write_text('run')\n")


def _evil_runtime(bundle: Path) -> None:
    with (bundle / "runtime.py").open("a") as file:
        file.write("\nPath('evil').write_text('run')\n")


def _cut_model(bundle: Path) -> None:
    (bundle / "tiny.onnx").write_bytes((bundle / "tiny.onnx").read_bytes()[:-9])


def _edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        change(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))

    return edit


def _sealed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda bundle: rewrite(bundle, change)


def _text(text: str) -> Callable[[Path], None]:
    return lambda bundle: (bundle / "manifest.json").write_text(text) and None


CHANGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "model": (_cut_model, "tiny.onnx was changed"),
    "preprocess": (_evil_preprocess, "preprocess.py was changed"),
    "link": (_linked_outside, "tiny.onnx is missing"),
    "labels": (_edited(lambda m: m["labels"].reverse()), "its seal is not"),
    "settings": (_edited(lambda m: m["preprocess"].update(scale=1.0)), "its seal is not"),
    "no seal": (_edited(lambda m: m.pop("seal")), "KeyError: 'seal'"),
    "other file": (_other_file, "no sha256 of '../other.onnx'"),
    "a name that leads out": (_sealed(lambda m: m["files"].update({"../x": "0" * 64})), "no sha256 of '../x'"),
    "no files": (_sealed(lambda m: m["files"].clear()), "no sha256 of 'tiny.onnx'"),
    "no golden answers": (_sealed(lambda m: m["golden"]["pairs"].clear()), "nothing could be proved"),
    "labels cut": (_sealed(lambda m: m.update(labels=m["labels"][:2])), "gives 6 numbers, and manifest.json has 2"),
    "how files are opened": (_evil_runtime, "runtime.py was changed"),
    "another shape": (_sealed(lambda m: m["input"].update(shape=[1, 3, 5])), "cannot be run ("),
    "a huge input": (_sealed(lambda m: m["input"].update(shape=[10**9])), "too large for any network"),
    "huge pictures": (_sealed(lambda m: m["preprocess"].update(resize_px=10**9)), "too large for any network"),
    "a list": (_text("[]"), "is not what was written (AttributeError"),
    "empty": (_text(""), "is not what was written (JSONDecodeError"),
    "cut": (_text('{"labels": ["ash", '), "is not what was written (JSONDecodeError"),
    "nested": (_text("[" * 100_000), "is not what was written (RecursionError"),
    "nested objects": (_text('{"a":' * 900 + "1" + "}" * 900), "is not what was written ("),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_bundle_is_never_run(
    name: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence and exit code 2; the self-test says FAIL and the same. In this process, which takes milliseconds."""
    bundle, picture = make("onnxruntime"), photo(tmp_path / "photo.png")
    change, sentence = CHANGED[name]
    change(bundle)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    here = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_template.main([str(picture)], bundle) == 2
    told = capsys.readouterr()
    assert told.out == "" and sentence in told.err and len(told.err.splitlines()) == 1
    assert run_template.main(["--selftest"], bundle) == 1
    told = capsys.readouterr()
    assert told.err == "" and told.out.startswith("FAIL: ") and sentence in told.out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == here, "something was written"


def test_a_changed_bundle_is_never_run_from_the_shell(make: Make, tmp_path: Path) -> None:
    bundle, picture = make("onnxruntime"), photo(tmp_path / "photo.png")
    _evil_preprocess(bundle)
    done = run(bundle, picture, at=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "preprocess.py was changed" in done.stderr
    assert not (tmp_path / "evil").exists()


def test_what_lies_beside_run_py_is_not_imported(make: Make, tmp_path: Path) -> None:
    bundle, picture = make("onnxruntime"), photo(tmp_path / "photo.png")
    for name in ("numpy", "json", "argparse", "__future__", "typing", "hashlib", "sitecustomize"):
        (bundle / f"{name}.py").write_text("open('evil', 'w')\nraise SystemExit('evil')\n")
    for folder in (tmp_path, bundle):
        command = [sys.executable, str(bundle / "run.py"), "--json", str(picture)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert not (folder / "evil").exists()


def test_a_network_with_softmax_is_not_normalised_twice(make: Make, tmp_path: Path) -> None:
    bundle = make("onnxruntime", RGB, softmax=True)
    picture = photo(tmp_path / "photo.png")
    best = json.loads(run(bundle, "--json", picture).stdout)["top"]
    assert best[0]["probability"] == pytest.approx(expected(picture, RGB).max(), abs=1e-4)


def test_an_onnx_file_with_channels_last(make: Make, tmp_path: Path) -> None:
    bundle = make("onnxruntime", RGB, layout="NHWC")
    assert run(bundle, "--selftest").returncode == 0
    picture = photo(tmp_path / "photo.png")
    best = json.loads(run(bundle, "--json", picture).stdout)["top"]
    assert best[0]["probability"] == pytest.approx(expected(picture, RGB).max(), abs=1e-4)


def test_broken_pictures_are_said_and_the_stream_goes_on(make: Make, tmp_path: Path) -> None:
    bundle = make("onnxruntime")
    good, other = photo(tmp_path / "good.png"), photo(tmp_path / "other.jpg", "L")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    names = [good, tmp_path / "cut.png", tmp_path / "empty.jpg", tmp_path / "absent.jpg", other]
    done = run(bundle, "--json", "-", stdin="".join(f"{name}\n" for name in names))
    assert done.returncode == 1
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == [str(good), str(other)]
    sentences = done.stderr.splitlines()
    assert len(sentences) == 3
    assert all(str(name) in sentence for name, sentence in zip(names[1:4], sentences, strict=True))
    assert "Traceback" not in done.stderr


def test_each_answer_comes_before_the_next_name_is_given(make: Make, tmp_path: Path) -> None:
    bundle, picture = make("onnxruntime"), photo(tmp_path / "photo.png")
    command = [sys.executable, "-I", str(bundle / "run.py"), "--json", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(3):
            process.stdin.write(f"{picture}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["file"] == str(picture)
        process.stdin.close()
        assert process.wait(30) == 0


def test_folders_and_words(make: Make, tmp_path: Path) -> None:
    bundle = make("onnxruntime")
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    photo(tmp_path / "photos" / "b.JPG"), photo(tmp_path / "photos" / "deeper" / "a.png")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    done = run(bundle, tmp_path / "photos", "--top", "2", "--threads", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith(str(tmp_path / "photos" / "b.JPG")) and "ms" in lines[0]
    assert "%" in lines[1] and lines[1].split()[-1] in LABELS
    (tmp_path / "nothing").mkdir()
    done = run(bundle, tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No image" in done.stderr


@pytest.mark.parametrize(("locked", "package"), [("onnxruntime", "onnxruntime"), ("numpy", "numpy"), ("PIL", "pillow")])
def test_a_missing_package_is_a_sentence_with_the_pip_line(
    locked: str, package: str, make: Make, tmp_path: Path
) -> None:
    done = run(make("onnxruntime"), photo(tmp_path / "photo.png"), locked=locked)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip().endswith(f"run: pip install {package}")
    assert len(done.stderr.splitlines()) == 1


def test_wrong_usage_is_exit_code_2(make: Make) -> None:
    bundle = make("onnxruntime")
    for arguments in ([], ["--top", "0", "x.png"], ["--threads", "many", "x.png"]):
        done = run(bundle, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
    (bundle / "manifest.json").unlink()
    done = run(bundle, "x.png")
    assert (done.returncode, "manifest.json is missing" in done.stderr) == (2, True)


def test_running_leaves_the_folder_as_it_was(make: Make, tmp_path: Path) -> None:
    bundle = make("onnxruntime")
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    run(bundle, "--selftest"), run(bundle, photo(tmp_path / "photo.png"))
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before


def test_ready_tensors_are_fed_as_they_are(make: Make, tmp_path: Path) -> None:
    from dataclasses import replace

    pictures = samples_for(RGB)
    golden = replace(pictures, array=pictures.inputs(slice(None)))
    bundle = make("onnxruntime", RGB, golden=golden)
    assert run(bundle, "--selftest").returncode == 0
    np.save(tmp_path / "one.npy", golden.array[0])
    found = json.loads(run(bundle, "--json", tmp_path / "one.npy").stdout)
    weight, bias = weights(3)
    wanted = int(np.argmax(weight @ golden.array[0].mean(axis=(1, 2)) + bias))
    assert found["top"][0]["label"] == LABELS[wanted]


def test_the_processors_name_tells_its_instruction_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pocketfit.bundle.python import place as run_template

    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(run_template, "Path", lambda _: cpuinfo)
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\n")
    assert run_template.processor_name() == "Some CPU avx2 avx512_vnni"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n\nModel\t\t: Some Board\n")
    assert run_template.processor_name() == "Some Board asimddp"
