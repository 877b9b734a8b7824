"""The fonts that lines and pages are rendered in, and which split may use them.

They come from Debian packages (`tools/fetch.py ocr-fonts`) and are no part of pocketfit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from benchmarks.ocr import texts
from pocketfit.core.errors import UserError
from pocketfit.formats import onnx_read

FOLDER = Path(".downloads/ocr-fonts")
RECOGNISER = Path(".downloads/rapidocr-onnxruntime-1.4.4/rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")
NOWHERE = "\U0010ffff"  # a code point that no font has: drawn as the font's sign for "missing"


@dataclass(frozen=True)
class Face:
    """A face of a font file.

    index      of the face in a collection (Noto's CJK collections hold five languages; 2 is simplified Chinese)
    chinese    whether it covers GB 2312
    test_only  whether no split but "test" may use it
    """

    file: str
    index: int = 0
    chinese: bool = True
    test_only: bool = False

    @property
    def name(self) -> str:
        return Path(self.file).stem


FACES = (
    Face("wqy-zenhei.ttc"),
    Face("NotoSansCJK-Regular.ttc", 2),
    Face("NotoSansCJK-Bold.ttc", 2),
    Face("NotoSerifCJK-Regular.ttc", 2),
    Face("NotoSerifCJK-Bold.ttc", 2),
    Face("gbsn00lp.ttf"),
    Face("gkai00mp.ttf"),
    Face("DejaVuSans.ttf", chinese=False),
    Face("DejaVuSans-Bold.ttf", chinese=False),
    Face("DejaVuSansMono.ttf", chinese=False),
    Face("DejaVuSerif.ttf", chinese=False),
    Face("LiberationSans-Regular.ttf", chinese=False),
    Face("LiberationSansNarrow-Regular.ttf", chinese=False),
    Face("wqy-microhei.ttc", test_only=True),
    Face("LXGWWenKai-Regular.ttf", test_only=True),
    Face("FreeSerif.ttf", chinese=False, test_only=True),
    Face("LiberationMono-Regular.ttf", chinese=False, test_only=True),
)


def faces_for(split: str, *, chinese: bool) -> tuple[tuple[Face, ...], tuple[Face, ...]]:
    """(faces that all splits share, faces of the test alone: () for other splits) that can write such a text."""
    fit = [face for face in FACES if face.chinese or not chinese]
    shared = tuple(face for face in fit if not face.test_only)
    return shared, tuple(face for face in fit if face.test_only) if split == "test" else ()


@lru_cache(maxsize=512)
def load(folder: Path, face: Face, size_px: int) -> ImageFont.FreeTypeFont:
    """A face at a size. The basic layout, as the other one depends on what Pillow was built with."""
    path = folder / face.file
    if not path.is_file():
        raise UserError(f"The font '{path}' is not there: python tools/fetch.py ocr-fonts")
    return ImageFont.truetype(str(path), size_px, face.index, layout_engine=ImageFont.Layout.BASIC)


def check_characters(folder: Path, recogniser: Path) -> None:
    """Raises UserError where a character of the texts is missing in the recogniser's charset or in a face."""
    if not recogniser.is_file():
        raise UserError(f"The recogniser '{recogniser}' is not there: python tools/fetch.py rapidocr")
    charset = charset_of(recogniser)
    wanted = texts.characters()
    if missing := [c for c in wanted if c not in charset]:
        raise UserError(f"The charset of '{recogniser}' lacks {' '.join(missing)}")
    for face in FACES:
        font = load(folder, face, 24)
        none = _look(font, NOWHERE)
        mine = [c for c in wanted if c != " " and (face.chinese or not texts.is_chinese(c))]
        if missing := [c for c in mine if _look(font, c) == none]:
            raise UserError(f"The font '{face.file}' lacks {' '.join(missing)}")


def charset_of(recogniser: Path) -> list[str]:
    """The characters of a recogniser's classes 1 to n, from its metadata key "character"; the last one is the space,
    which PaddleOCR adds (class 0 is the blank)."""
    about = onnx_read.metadata(onnx_read.read_model(recogniser))
    if "character" not in about:
        raise UserError(f"'{recogniser}' states no charset: its metadata have no key 'character'")
    return [*about["character"].splitlines(), " "]


def _look(font: ImageFont.FreeTypeFont, character: str) -> tuple[object, bytes]:
    mask = font.getmask(character, mode="L")
    return mask.size, bytes(mask)
