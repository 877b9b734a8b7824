"""Readable, stable names for layers: their weight's, their module's in torch, or the operator's."""

from __future__ import annotations

import keyword
import re

ROLE = re.compile(r"([./_](weights?|w_\d+|kernel|gamma|slope|alpha|w|ReadVariableOp(:\d+)?))+$", re.IGNORECASE)
# "onnx::Conv_345", "val_12", "345", "Constant_7_output_0": made up by an exporter
ANONYMOUS = re.compile(
    r"^(onnx::)?([A-Z]\w*_\d+|\d+|(val|tensor|const\w*|t|param|p2o\.\w+)[._]?\d*)(_output_\d+)?(:\d+)?$"
)
TOP = 8  # at most this many scopes of a path in a name


def from_weight(name: str) -> str:
    """The dotted name of the layer that a weight belongs to; "" where its name was made up by an exporter.

    >>> from_weight("layers.0.conv.weight"), from_weight("conv2d_18.w_0"), from_weight("onnx::Conv_345")
    ('layers.0.conv', 'conv2d_18', '')
    >>> from_weight("permute_7"), from_weight("attention.in_proj_weight")
    ('', 'attention.in_proj')
    """
    layer = ROLE.sub("", name)
    says = layer != name or "." in name or "/" in name
    return "" if not says or ANONYMOUS.match(name) or ANONYMOUS.match(layer) else dotted(layer)


def from_path(name: str) -> str:
    """The module of a node's path as torch writes it; "" where the name is no path.

    >>> from_path("/features/features.0/features.0.2/Clip"), from_path("/layer1/layer1.0/conv1/Conv")
    ('features.0.2', 'layer1.0.conv1')
    >>> from_path("Add.3")
    ''
    """
    steps: list[str] = []
    for step in name.strip("/").split("/")[:-1]:
        if steps and step.startswith(f"{steps[-1]}."):
            steps[-1] = step
        else:
            steps.append(step)
    return dotted("/".join(steps[-TOP:]))


def dotted(name: str) -> str:
    """The name as that of a module's attribute: only letters, digits and "_" between dots.

    >>> dotted("model/block 1/conv"), dotted("a..b:0")
    ('model.block_1.conv', 'a.b_0')
    """
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in re.split(r"[./]", name)]
    return ".".join(part for part in parts if part.strip("_"))


def identifier(name: str) -> str:
    """A name for a variable or a loose parameter.

    >>> identifier("images:0"), identifier("lambda"), identifier("12")
    ('images_0', 'lambda_', 'n12')
    """
    plain = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "value"
    plain = f"n{plain}" if plain[0].isdigit() else plain
    return f"{plain}_" if keyword.iskeyword(plain) or plain in ("self", "torch", "inf", "nan", "device") else plain


class Names:
    """The names given so far: no name is given twice, and a leaf module contains no other."""

    def __init__(self, reserved: frozenset[str]) -> None:
        """`reserved`: words that no part of a name may be, as modules have attributes of these names ("train")."""
        self._reserved = reserved
        self._leaves: set[str] = set()
        self._containers: set[str] = set()

    def is_free(self, name: str) -> bool:
        return name not in self._leaves and name not in self._containers

    def free(self, wanted: str) -> str:
        """The name itself, or the first of wanted_1, wanted_2, ... that clashes with nothing."""
        parts = [f"{part}_" if part in self._reserved else part for part in wanted.split(".")]
        for i in range(1, len(parts)):
            while ".".join(parts[:i]) in self._leaves:  # "act.conv" while "act" is an activation
                parts[i - 1] += "_"
        wanted, free, number = ".".join(parts), ".".join(parts), 1
        while free in self._leaves or free in self._containers:
            free, number = f"{wanted}_{number}", number + 1
        self._leaves.add(free)
        self._containers |= {".".join(free.split(".")[:i]) for i in range(1, len(parts))}
        return free
