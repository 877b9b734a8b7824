"""Lists that ONNX Runtime ships of what its execution providers for phones take, read from the installed package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pocketfit.analysis.accelerators.table import Operator, Table
from pocketfit.core.errors import CannotRunHere
from pocketfit.core.support.loading import require

FOLDER = "tools/mobile_helpers"  # in the package, as of ONNX Runtime 1.12
ROW = re.compile(r"\|\s*(?P<domain>[\w.]+)[:.](?P<name>\w+)\s*\|(?P<note>.*)\|\s*")
MISSPELT = {"Argmax": "ArgMax", "Argmin": "ArgMin", "Matmul": "MatMul"}


def provider_table(target: str, title: str, file: str, notes: Sequence[str]) -> Table:
    """The list in `file` of the installed ONNX Runtime as a Table.

    Raises MissingPackage without ONNX Runtime, CannotRunHere where its package has no such list.
    """
    onnxruntime = require("onnxruntime", "onnxruntime")
    path = Path(str(onnxruntime.__file__)).parent / FOLDER / file
    if not path.is_file():
        raise CannotRunHere(
            f"ONNX Runtime {onnxruntime.__version__} ships no list of operators for '{target}' ({file})"
        )
    return Table(
        target=target,
        title=title,
        format="onnx",
        source=f"onnxruntime {onnxruntime.__version__} as installed, onnxruntime/{FOLDER}/{file}",
        date=f"of onnxruntime {onnxruntime.__version__}",
        read="at this call",
        operators=rows(path.read_text(encoding="utf-8")),
        otherwise="ONNX Runtime's CPU provider runs it",
        notes=(*notes, "The list states no dtypes, apart from its conditions"),
    )


def rows(text: str) -> dict[str, Operator]:
    """The lines of a list in Markdown: operators of ONNX by their names, others with their domain.

    >>> rows("|Operator|Note|\\n|---|---|\\n|ai.onnx:Conv|Only 2D.<br/>Stored weights.|")
    {'Conv': Operator(types=(), note='Only 2D. Stored weights.')}
    """
    found = {}
    for match in filter(None, map(ROW.fullmatch, text.splitlines())):
        name = MISSPELT.get(match["name"], match["name"])
        note = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match["note"].replace("<br/>", " ")).strip()
        found[name if match["domain"] == "ai.onnx" else f"{match['domain']}:{name}"] = Operator((), note)
    return found
