"""Run this bundle's network on images or recordings; all that it needs to know is in manifest.json beside this file.

    python run.py photo.jpg more.png folder/     # the answer to each image, with timing
    find . -name '*.jpg' | python run.py -       # file names from stdin, one answer as soon as each is done
    python run.py --json photo.jpg               # one JSON object a line
    python run.py --match a.png b.png            # embeddings: is b the same as a, by the threshold in manifest.json
    python run.py --selftest                     # hashes, preprocessing and outputs against golden/

Needs numpy, the one runtime that manifest.json names, and for images Pillow; recordings are .wav files. Every start
checks all files against their hashes first. Exit codes: 0 done, 1 an image or a recording could not be read or the
self-test failed, 2 wrong usage, a missing package or a changed bundle, 130 Ctrl-C.
"""

import os
import sys

if __name__ == "__main__":
    # Python puts a program's folder in front of its import path; files there must not replace packages.
    _own = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != _own]

import argparse
import hashlib
import importlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
WHOLE = ("int32", "int64", "bool")
CHUNK_BYTES = 1 << 20
MOST_MANIFEST_BYTES, MOST_VALUES, MOST_PIXELS = 10 << 20, 1 << 26, 16_384  # values of an input, pixels of its side
Run = Callable[..., Any]  # the inputs as the file takes them -> its first output as the file gives it


class Refused(Exception):
    """The bundle is not as it was written; the message is a sentence."""


def need(module: str, package: str) -> Any:
    """Import a module, or end with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        sys.exit(_refuse(_missing(package, error)))


def _missing(package: str, error: ImportError) -> str:
    return f"The package '{package}' cannot be loaded ({error}); run: pip install {package}"


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


class Network:
    """The network with its manifest: image -> tensor -> raw output -> probabilities."""

    def __init__(self, folder: Path, threads: int, manifest: "dict[str, Any]") -> None:
        self.np = need("numpy", "numpy")
        self.folder, self.manifest = folder, manifest
        self.input, self.output = self.manifest["input"], self.manifest["output"]
        if self.input["kind"] != "sound":
            need("PIL.Image", "pillow")  # preprocess.py needs it
        self.inputs = [self.input, *self.input.get("more", ())]
        self.kinds = [one["dtype"] if one["dtype"] in WHOLE else "float32" for one in self.inputs]  # before any grid
        self.labels, self.task = self.manifest["labels"], self.manifest.get("task", "classification")
        self.settings = _settings(self.manifest["preprocess"])
        self.preprocess = _load(folder / "preprocess.py", manifest["files"]["preprocess.py"])
        self.answers = _load(folder / "answers.py", manifest["files"]["answers.py"])
        self.size: "tuple[int, int] | None" = None  # of the picture that `tensor` has read last: (height, width)
        has_boxes = self.task == "detection"
        self.boxes = _load(folder / "boxes.py", manifest["files"]["boxes.py"]) if has_boxes else None
        runtime = _load(folder / "runtime.py", manifest["files"]["runtime.py"])
        try:
            self._run: Run = runtime.opened(folder / manifest["file"]["name"], threads)
        except ImportError as error:
            sys.exit(_refuse(_missing(manifest["runtime"]["package"], error)))
        self._warm_up()

    def _warm_up(self) -> None:
        """Load decoders and prepare kernels, so that the first image's time does not contain that."""
        answer = self.raw_answer(tuple(map(self.np.zeros, (one["shape"] for one in self.inputs), self.kinds)))
        if self.task in ("classification", "text") and answer.shape[-1] != len(self.labels):
            given = f"the network gives {answer.shape[-1]} numbers"
            raise Refused(f"{given}, and manifest.json has {len(self.labels)} labels")
        if self.input["kind"] == "sound":
            return
        blank = BytesIO()
        need("PIL.Image", "pillow").new("RGB", (8, 8)).save(blank, "PNG")
        blank.seek(0)
        self.preprocess.to_tensor(blank, self.settings, self.input["layout"])

    def tensor(self, path: Path, **changes: Any) -> "tuple[Any, ...]":
        """The inputs of an image or a recording, with a batch of one; a .npy file, or an .npz file with all inputs by
        name, is fed as it is."""
        if self.input["kind"] == "array" or (self.input["kind"] == "sound" and path.suffix == ".npy"):
            found = self._stored(path)
        else:
            settings = SimpleNamespace(**{**vars(self.settings), **changes})
            found = [self._prepared(path, settings)]
        given = zip(self.inputs, self.kinds, found, strict=True)
        return tuple(self.np.ascontiguousarray(array.astype(kind)).reshape(one["shape"]) for one, kind, array in given)

    def _prepared(self, path: Path, settings: SimpleNamespace) -> Any:
        if self.input["kind"] == "sound":
            return self.preprocess.to_tensor(path, settings, self.input["layout"])
        pixels = self.preprocess.decode(path, settings)
        self.size = pixels.shape[:2]
        return self.preprocess.tensor_of(pixels, settings, self.input["layout"])

    def _stored(self, path: Path) -> "list[Any]":
        """The arrays of all inputs that a file holds."""
        found = self.np.load(path, allow_pickle=False)
        return [found] if len(self.inputs) == 1 else [found[one["name"]] for one in self.inputs]

    def raw_answer(self, values: "tuple[Any, ...]") -> Any:
        """The inputs -> output as the file gives it (integers where its output is quantized)."""
        first = values[0]
        if grid := self.input["quantization"]:
            limits = self.np.iinfo(self.input["dtype"])
            steps = self.np.rint(first / self.np.float32(grid["scale"])) + grid["zero_point"]
            first = self.np.clip(steps, limits.min, limits.max)
        given = [array.astype(one["dtype"]) for one, array in zip(self.inputs, (first, *values[1:]), strict=True)]
        return self._run(*given)

    def answer(self, values: "tuple[Any, ...]", top: int) -> "tuple[dict[str, Any], Any]":
        """(what the output for one tensor means, with the time that the runtime took in milliseconds; an array)."""
        start = time.perf_counter()
        raw = self.raw_answer(values)
        took_ms = (time.perf_counter() - start) * 1e3
        numbers = raw.astype("float64")
        if grid := self.output["quantization"]:
            numbers = (numbers - grid["zero_point"]) * grid["scale"]
        if self.output.get("layout") == "NHWC" and numbers.ndim == 4:
            numbers = numbers.transpose(0, 3, 1, 2)
        shares = self.output["values"] == "probabilities"
        boxes = None
        if self.boxes is not None:
            place = self.preprocess.placed(*self.size, self.settings) if self.size else None
            boxes = self.boxes.shown(numbers, self.manifest["boxes"], self.size, place)
        settings = {key: self.output[key] for key in ("threshold", "span") if key in self.output}
        found, array = self.answers.read(
            self.task, numbers, self.labels, probabilities=shares, top=top, boxes=boxes, **settings
        )
        return {**found, "inference_ms": round(took_ms, 3)}, array


def _settings(preprocess: dict[str, Any]) -> SimpleNamespace:
    if "sound" in preprocess:
        return SimpleNamespace(**preprocess["sound"])
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in preprocess.items()}
    return SimpleNamespace(**settings, channels=1 if preprocess["colour"] == "GRAY" else 3)


def _load(path: Path, expected: str) -> Any:
    """The module in this file, read once: what was hashed is what is run. Nothing is written beside it."""
    source = path.read_bytes()
    if hashlib.sha256(source).hexdigest() != expected:
        raise Refused(f"{path.name} was changed: its sha256 is not the one in manifest.json")
    module = ModuleType(f"bundle_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def named_files(arguments: Iterable[str], extensions: tuple[str, ...]) -> Iterator[Path]:
    """Files in the order given; of a folder those with a known extension, `-` reads names from stdin line by line."""
    for argument in arguments:
        if argument == "-":
            for line in sys.stdin:
                if name := line.rstrip("\r\n"):
                    yield from named_files([name], extensions) if name != "-" else ()
        elif (path := Path(argument)).is_dir():
            for folder, folders, names in os.walk(path):
                folders.sort()
                yield from (Path(folder, name) for name in sorted(names) if name.lower().endswith(extensions))
        else:
            yield path


def read_all(network: Network, arguments: list[str], *, top: int, as_json: bool, save: str, match: Any) -> int:
    """Print the answer to each image as soon as it is there; a broken image is a sentence on stderr."""
    seen = broken = 0
    endings = {"array": (".npy", ".npz"), "sound": (".wav",)}.get(network.input["kind"], PICTURES)
    for path in named_files(arguments, endings):
        seen += 1
        start = time.perf_counter()
        try:
            values = network.tensor(path)
        except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
            broken += 1
            print(_complaint(path, error), file=sys.stderr, flush=True)
            continue
        preprocess_ms = round((time.perf_counter() - start) * 1e3, 3)
        answer, array = network.answer(values, top)
        found = {"file": str(path), **answer, **(match(array) if match else {}), "preprocess_ms": preprocess_ms}
        if save:
            stem = Path(save, f"{seen:06d}-{path.stem}")
            found["saved"] = network.answers.save(stem, array, network.task, getattr(network.settings, "colour", ""))
        print(json.dumps(found) if as_json else network.answers.readable(found), flush=True)
    if not seen:
        print(
            f"No {'recording' if network.input['kind'] == 'sound' else 'image'} in {', '.join(arguments)}",
            file=sys.stderr,
        )
    return 1 if broken or not seen else 0


def _complaint(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return reason if str(path) in reason else f"{path} cannot be read: {reason}"


def selftest(folder: Path, threads: int) -> int:
    """Compare files, tensors and outputs with those from when the bundle was made; print PASS or what differs."""
    manifest: "dict[str, Any]" = {}
    try:
        manifest = read_manifest(folder)
        problems = list(changed_files(folder, manifest["files"]))
        if not problems:  # changed files are not run
            problems = list(different_answers(opened(folder, threads, manifest)))
    except Refused as refusal:
        problems = [str(refusal)]
    except Exception as error:  # numpy raises whatever a strange file makes it raise
        problems = [f"the golden outputs cannot be compared ({_cause(error)})"]
    if problems:
        print("\n".join(f"FAIL: {problem}" for problem in problems))
        return 1
    pairs = len(manifest["golden"]["pairs"])
    print(f"PASS: {len(manifest['files'])} files unchanged, {pairs} golden pairs answered as expected")
    return 0


def read_manifest(folder: Path) -> "dict[str, Any]":
    """manifest.json, if it is unchanged and names only files of this folder. Raises Refused."""
    path = folder / "manifest.json"
    if not _is_ours(folder, path) or path.stat().st_size > MOST_MANIFEST_BYTES:
        raise Refused("manifest.json is no file of this folder, or too large to be one")
    try:
        manifest = json.loads(path.read_bytes().decode("utf-8"))
        if seal(manifest) != manifest["seal"]:
            raise Refused("manifest.json was changed: its seal is not that of what stands in it")
        named = [manifest["file"]["name"], "preprocess.py", "answers.py", "runtime.py", "place.py", "run.py"]
        pairs = manifest["golden"]["pairs"]
        named += [pair[key] for pair in pairs for key in ("input", "tensor", "output")]
        unknown = [name for name in named if name not in manifest["files"]]
        outside = [name for name in manifest["files"] if not is_name(name)]
        sizes, sound = manifest["preprocess"], manifest["preprocess"].get("sound")
        shapes = [one["shape"] for one in (manifest["input"], *manifest["input"].get("more", ()))]
        too_large = any(math.prod(shape) > MOST_VALUES for shape in shapes)
        if sound is None:
            too_large |= max(sizes[key] for key in ("height", "width", "resize_px")) > MOST_PIXELS
        else:
            too_large |= max(sound[key] for key in ("samples", "fft", "window", "mels")) > MOST_VALUES
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise Refused(f"manifest.json is not what was written ({type(error).__name__}: {str(error)[:100]})") from error
    if unknown or outside or manifest["files"][named[0]] != manifest["file"]["sha256"]:
        odd = (unknown + outside + named)[0]
        raise Refused(f"manifest.json has no sha256 of {odd!r}, or it is no file of this folder")
    if too_large:
        raise Refused("manifest.json speaks of an input that is too large for any network")
    if not pairs:
        raise Refused("manifest.json lists no golden outputs, so that nothing could be proved")
    return dict(manifest)


def seal(manifest: "dict[str, Any]") -> str:
    """sha256 over everything in the manifest but the seal itself, as JSON with sorted keys and without spaces."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_name(value: str) -> bool:
    """Whether a value is a plain file name, or one in golden/, that does not lead out of the folder."""
    name = value[len("golden/") :] if value.startswith("golden/") else value
    return name not in ("", ".", "..") and not re.search(r"[/\\:\x00]", name)


def changed_files(folder: Path, files: "dict[str, str]") -> "Iterator[str]":
    """A sentence for each file that is missing or has another sha256 than `files` says."""
    for name, expected in files.items():
        path = folder / name
        if not _is_ours(folder, path):
            yield f"{name} is missing"
        elif file_sha256(path) != expected:
            yield f"{name} was changed: its sha256 is not the one in manifest.json"


def _is_ours(folder: Path, path: Path) -> bool:
    """Whether this is a plain file inside the folder, after links are followed."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def different_answers(network: Network) -> Iterator[str]:
    """A sentence for each golden pair whose tensor or output lies outside the manifest's tolerance."""
    np, golden = network.np, network.manifest["golden"]
    limits, unit = golden["tolerance"], golden["tolerance"]["output_unit"]
    place = _load(network.folder / "place.py", network.manifest["files"]["place.py"])
    allowed = limits["output_same_place" if place.is_same(network.manifest) else "output_elsewhere"]
    for pair in golden["pairs"]:
        # an image after the geometry must not be resized and cut a second time
        changes = {"resize": "none"} if pair["geometry_done"] else {}
        values = network.tensor(network.folder / pair["input"], **changes)
        expected = tuple(network._stored(network.folder / pair["tensor"]))
        gap = np.concatenate([np.abs(a.astype("float64") - b).ravel() for a, b in zip(values, expected, strict=True)])
        if not (gap.max() <= limits["tensor_max"] and gap.mean() <= limits["tensor_mean"]):  # NaN differs, too
            yield f"{pair['input']}: the tensor differs by up to {gap.max():.3g} (allowed {limits['tensor_max']:.3g})"
        raw = network.raw_answer(expected).astype("float64")
        apart = float(np.abs(raw - np.load(network.folder / pair["output"], allow_pickle=False)).max())
        if not apart <= allowed:
            yield f"{pair['input']}: the output differs by up to {apart:.3g} {unit} (allowed {allowed:.3g})"


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description="Run the network in this folder on images or recordings.")
    words.add_argument("pictures", nargs="*", help="image or .wav files, or folders; - reads file names from stdin")
    words.add_argument("--top", type=int, default=5, metavar="N", help="how many labels to print (default 5)")
    words.add_argument(
        "--save", default="", metavar="DIR", help="write each answer's array (.npy) or picture (.png) there"
    )
    words.add_argument("--match", action="store_true", help="compare the first image with the others (embeddings)")
    words.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the runtime (default 1)")
    words.add_argument("--json", action="store_true", help="print one JSON object a line")
    words.add_argument("--selftest", action="store_true", help="check this bundle against its golden outputs")
    return words


def main(arguments: "list[str] | None" = None, folder: Path = HERE) -> int:
    words = parser()
    given = words.parse_args(arguments)
    if given.top < 1 or given.threads < 1:
        words.error("--top and --threads take whole numbers from 1")
    if not (folder / "manifest.json").is_file():
        return _refuse(f"{folder / 'manifest.json'} is missing: keep run.py in the folder that it came in")
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be text in the terminal's encoding
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")
    if given.selftest:
        return selftest(folder, given.threads)
    if not given.pictures:
        words.error("name an image or a recording, a folder, or - for file names on stdin")
    if given.save and not Path(given.save).is_dir():
        words.error(f"--save {given.save} is no folder")
    try:
        manifest = read_manifest(folder)
        if problems := list(changed_files(folder, manifest["files"])):
            return _refuse(f"{folder}: {problems[0]}; nothing was run")
        network = opened(folder, given.threads, manifest)
    except (Refused, OSError) as refusal:
        return _refuse(f"{folder}: {refusal}")
    if given.match and network.task != "embedding":
        return _refuse(f"--match compares embeddings, and this network's task is {network.task}")
    match = network.answers.Matcher(manifest.get("verification")) if given.match else None
    return read_all(network, given.pictures, top=given.top, as_json=given.json, save=given.save, match=match)


def opened(folder: Path, threads: int, manifest: "dict[str, Any]") -> Network:
    """The network of a bundle whose files have been checked. Raises Refused."""
    try:
        return Network(folder, threads, manifest)
    except Refused:
        raise
    except Exception as error:  # a runtime or numpy raises whatever a strange file makes it raise
        raise Refused(f"the network cannot be run ({_cause(error)})") from error


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe (head) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
