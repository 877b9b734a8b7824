"""What a bundle holds, and what happens to the folder that it is written to."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfit.bundle import golden, write, write_bundle
from pocketfit.bundle.python import run
from pocketfit.bundle.python.readme import readme
from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.runtimes.common.output_file import artifact_of
from tests.bundle.tiny_networks import BGR, GREY, LABELS, LINE, RGB, model_for, samples_for, write_onnx

Make = Callable[..., Path]
RESULT = {"status": "met", "certified": True, "budget": {}, "comparison": {"size_ratio": 0.3}, "trials": 4}


def manifest_of(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def test_the_files_and_the_manifest(make: Make) -> None:
    bundle = make("onnxruntime", RGB, "uint8", result=RESULT)
    manifest = manifest_of(bundle)
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == names - {"manifest.json"}
    for name, sha256 in manifest["files"].items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == sha256
    assert manifest["bundle_version"] == 2 and manifest["seal"] == run.seal(manifest)
    assert manifest["file"]["sha256"] == manifest["files"]["tiny.onnx"]
    assert manifest["file"]["bytes"] == (bundle / "tiny.onnx").stat().st_size
    assert Plan.from_json(manifest["plan"]).export.io == "uint8"
    assert Preprocess.from_json(manifest["preprocess"]) == RGB
    assert manifest["labels"] == list(LABELS)
    assert manifest["input"] == {
        "kind": "picture",
        "name": "image",
        "shape": [1, 3, 16, 20],
        "dtype": "uint8",
        "layout": "NCHW",
        "quantization": {"scale": pytest.approx(5.4 / 255), "zero_point": 128},
    }
    assert manifest["output"]["values"] == "logits"
    assert manifest["output"]["quantization"] == {"scale": pytest.approx(6 / 255), "zero_point": 128}
    assert manifest["measurements"]["latency_ms"]["value"] == 0.25
    assert "samples" not in manifest["measurements"]["latency_ms"]
    assert manifest["measurements"]["memory_bytes"]["how"] == "not_possible_here"
    assert manifest["result"] == {key: RESULT[key] for key in ("status", "certified", "budget", "comparison")}


def test_code_is_copied_verbatim(make: Make) -> None:
    import pocketfit.bundle.python.run as template
    import pocketfit.sources.image_preprocess as reference

    bundle = make("onnxruntime")
    assert (bundle / "run.py").read_bytes() == Path(template.__file__).read_bytes()
    assert (bundle / "preprocess.py").read_bytes() == Path(reference.__file__).read_bytes()


@pytest.mark.parametrize("preprocess", [RGB, GREY, BGR, LINE], ids=["rgb", "grey", "bgr", "line"])
def test_golden_pictures_decode_to_the_samples(preprocess: Preprocess, make: Make) -> None:
    bundle, samples = make("onnxruntime", preprocess), samples_for(preprocess)
    for number, row in enumerate([0, 2, 4]):
        pixels = np.asarray(Image.open(bundle / "golden" / f"sample{number}.png"))
        pixels = pixels[..., np.newaxis] if preprocess.colour == "GRAY" else pixels
        assert np.array_equal(pixels[..., ::-1] if preprocess.colour == "BGR" else pixels, samples.array[row])
        tensor = np.load(bundle / "golden" / f"sample{number}.tensor.npy")
        assert np.array_equal(tensor, samples.inputs([row], "NCHW"))
    chart = Image.open(bundle / "golden" / "chart.png")
    assert chart.mode == "RGBA"
    assert chart.width > preprocess.width and chart.height > preprocess.height
    assert np.asarray(chart)[..., 3].min() == 0


def test_charts_of_text_lines_are_squeezed_and_padded(make: Make) -> None:
    """Each of the two shows what the other can't; run.py's self-test reads both."""
    bundle = make("onnxruntime", LINE)
    pairs = {pair["input"]: pair for pair in manifest_of(bundle)["golden"]["pairs"]}
    squeezed, padded = (np.load(bundle / pairs[f"golden/{name}.png"]["tensor"]) for name in ("chart", "chart-narrow"))
    grey = (127 / 255 - 0.5) / 0.5
    assert np.ptp(squeezed[0, :, :, -1]) > 0.1
    assert padded[0, :, :, 20:] == pytest.approx(grey, abs=1e-6) and np.ptp(padded[0, :, :, 19]) > 0.1
    assert not any(pairs[f"golden/{name}.png"]["geometry_done"] for name in ("chart", "chart-narrow"))


def test_readme_and_requirements(make: Make) -> None:
    bundle = make("onnxruntime", result=RESULT)
    text = (bundle / "README.md").read_text()
    notes = json.loads((bundle / "manifest.json").read_text())["notes"]
    assert 5 <= len(text.splitlines()) - len(notes) <= 15
    assert all(note in text for note in notes)
    assert "median latency 0.25 ms (0.20 to 0.30, n = 3)" in text
    assert "The limits are met (certified)." in text
    assert "python run.py --selftest" in text
    packages = [line.split("==")[0] for line in (bundle / "requirements.txt").read_text().splitlines()]
    assert packages == ["onnxruntime", "numpy", "pillow"]
    manifest = manifest_of(bundle)
    for status, words in (("infeasible", "NOT met"), ("stopped", "was stopped")):
        assert words in readme({**manifest, "result": {"status": status, "certified": False}})
    assert "still under way" in readme({**manifest, "result": None})


def test_an_earlier_bundle_is_replaced_and_added_files_stay(make: Make, tmp_path: Path) -> None:
    bundle = make("litert")
    (bundle / "notes.txt").write_text("mine")
    (bundle / "__pycache__").mkdir()
    make("onnxruntime")
    assert (bundle / "tiny.onnx").exists() and not (bundle / "tiny.tflite").exists()
    assert (bundle / "notes.txt").read_text() == "mine"
    assert not (bundle / "__pycache__").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "tiny.onnx", "tiny.tflite"]
    assert bundle.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_taken(make: Make, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert (make("onnxruntime") / "manifest.json").exists()


@pytest.mark.parametrize("content", ["", "[1]", "{broken", '{"bundle_version": 1}', '{"files": {}}'])
def test_a_folder_that_is_not_ours_is_never_touched(content: str, make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "thesis.tex").write_text("ten years")
    if content:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="no bundle that pocketfit wrote"):
        make("onnxruntime")
    assert (folder / "thesis.tex").read_text() == "ten years"
    assert not list(tmp_path.glob(".bundle*"))


def test_files_and_links_are_not_replaced(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with pytest.raises(UserError, match="no bundle"):
            make("onnxruntime", folder=tmp_path / name)
    assert (tmp_path / "file").read_text() == "a file"
    assert (tmp_path / "link").is_symlink()


def test_a_failure_leaves_the_earlier_bundle(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make("onnxruntime")
    before = manifest_of(bundle)

    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(write, "_write_json", fail)
    with pytest.raises(OSError, match="No space"):
        make("onnxruntime", RGB, "uint8")
    assert manifest_of(bundle) == before
    assert not list(tmp_path.glob(".bundle*"))


def test_what_a_killed_run_left_is_swept_up(make: Make, tmp_path: Path) -> None:
    bundle = make("onnxruntime")
    (bundle / "notes.txt").write_text("mine")
    bundle.rename(tmp_path / ".bundle-old-abc")  # killed between the two renames
    (tmp_path / ".bundle-new-abc").mkdir()
    make("onnxruntime")
    assert (bundle / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".bundle*"))


def test_what_does_not_fit_is_refused_in_a_sentence(make: Make, tmp_path: Path) -> None:
    other = replace(RGB, height=24)
    with pytest.raises(UserError, match=r"takes \[1, 3, 16, 20\], but .* 24 x 20"):
        make("onnxruntime", RGB, model=model_for(other), golden=samples_for(other))
    with pytest.raises(UserError, match="other settings than the model's preprocess"):
        make("onnxruntime", RGB, golden=samples_for(replace(RGB, resize="exact")))
    with pytest.raises(UserError, match="has 6 outputs, but the model has 2 labels"):
        make("onnxruntime", RGB, model=model_for(RGB, ("a", "b")))
    with pytest.raises(UserError, match="at least one golden sample"):
        empty = replace(samples_for(RGB), array=np.zeros((0, 3, 16, 20), np.float32), labels=np.zeros(0, np.int64))
        make("onnxruntime", RGB, golden=empty)
    assert not (tmp_path / "bundle").exists()


def test_without_labels_the_classes_have_numbers(make: Make) -> None:
    assert manifest_of(make("onnxruntime", model=model_for(RGB, ())))["labels"] == ["0", "1", "2", "3", "4", "5"]


def test_a_changed_missing_or_analysis_file_is_refused(tmp_path: Path) -> None:
    write_onnx(tmp_path / "tiny.onnx", RGB, "float32")
    artifact = artifact_of(tmp_path / "tiny.onnx", Plan((), ExportSettings("onnxruntime")), "onnxruntime")
    words = {"golden": samples_for(RGB), "measurements": {}, "result": None}
    with pytest.raises(UserError, match="'torch' file"):
        write_bundle(tmp_path / "b", replace(artifact, runtime="torch"), model_for(RGB), **words)
    with pytest.raises(UserError, match="was changed after it was measured"):
        write_bundle(tmp_path / "b", replace(artifact, sha256="0" * 64), model_for(RGB), **words)
    with pytest.raises(UserError, match=r"absent\.onnx is missing"):
        write_bundle(tmp_path / "b", replace(artifact, path=str(tmp_path / "absent.onnx")), model_for(RGB), **words)
    assert not (tmp_path / "b").exists()


def test_importing_the_bundle_loads_nothing_heavy() -> None:
    code = "import sys, pocketfit.bundle; print({'torch', 'onnxruntime', 'ai_edge_litert', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_golden_rows_come_from_all_over() -> None:
    assert golden._spread(100) == [0, 33, 66]
    assert golden._spread(1) == [0]
    assert golden._spread(0) == []


def test_float_tolerance_grows_with_the_span_and_the_precision() -> None:
    answers = np.array([[-2.0, 3.0]], np.float32)
    made = {
        precision: golden.tolerance(answers, RGB, ExportSettings("litert", precision))["output_elsewhere"]
        for precision in ("float32", "float16", "int8")
    }
    assert made == pytest.approx({"float32": 0.005, "float16": 0.1, "int8": 0.5})
