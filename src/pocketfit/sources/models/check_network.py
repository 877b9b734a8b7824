"""The checks of a network before any work: its weights, whether it runs, the shape of its outputs, and whether these
are the same at each call. A failed check is one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from pocketfit.core.errors import UserError
from pocketfit.core.signature import Signature, TensorSpec

SAME = 1e-2  # of the largest output: far above what sums in another order change, far below what random numbers do
TOKENS = (127, 10, 2, 1)  # integers are drawn below these
ABOUT_SIZES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)  # what an input of another size raises
BY_LAYERS = "by layers"  # key in the meta of a torch.fx network that no class builds (passes/prune/by_layers.py)


def check_weights(network: nn.Module) -> None:
    """Raises UserError for tensors that are not there yet, are elsewhere, are no float32, or hold NaN or infinity."""
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(
            "A TorchScript module has no layers that can be changed: hand over the torch.nn.Module that it was made of"
        )
    for name, tensor in network.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or tensor.is_quantized:
            raise UserError(
                f"The entry {name} of the network's state is no plain tensor, as in networks that are quantized"
                " already: hand over the float network that it was made of"
            )
        if is_lazy(tensor):
            owner = network.get_submodule(name.rpartition(".")[0])
            raise UserError(
                f"The layer '{name.rpartition('.')[0]}' ({type(owner).__name__}) has no weights yet: run the network"
                " once on an input, or load weights, before you hand it over"
            )
        if tensor.device.type != "cpu":
            raise UserError(f"The tensor {name} of the network is on '{tensor.device}': call .cpu() on the network")
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(
                f"The tensor {name} of the network is {str(tensor.dtype).removeprefix('torch.')}: pocketfit starts from"
                " float32 and makes smaller files itself, so call .float() on the network first"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"The tensor {name} of the network contains NaN or infinity: load sound weights first")


def signature_of(
    network: nn.Module,
    shape: tuple[int, ...],
    *,
    given: TensorSpec | None = None,
    more: Sequence[TensorSpec] = (),
    outputs: Sequence[str] = (),
) -> Signature:
    """Inputs of these shapes, in the order of the forward's arguments; outputs of floats whose first dimension is the
    batch: a tensor, or a tuple, a list or a dict of tensors, the first of which is the main one. Images are NCHW.
    `network` is in eval mode.

    shape    of the first input without the batch
    given    name and dtype of the first input; left out: "image" or "input", float32
    more     the further inputs
    outputs  names; left out: the dict's keys, "logits" for a single [batch, classes], else "output_0", …

    Raises UserError where the network takes or gives anything else, does not run at this shape, gives other outputs for
    the same input, or lets the samples of a batch act on each other.
    """
    if given is None:
        picture = len(shape) == 3
        given = TensorSpec("image" if picture else "input", (), "float32", "NCHW" if picture else "")
    inputs = _in_order(network, (replace(given, shape=(None, *shape)), *more))
    words = " and ".join("x".join(map(str, spec.shape[1:])) for spec in inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        noise, answer = _first_run(network, inputs, words)
        first = tensors_of(answer, outputs)
        again = tensors_of(_run(network, noise, words), outputs)
        if not all(_alike(one, again.get(name)) for name, one in first.items()):
            raise UserError(_why_differently(network, noise))
        alone = tensors_of(_run(network, _part(noise, 0), words), outputs, rows=1)
        for name, one in first.items():
            if name not in alone or alone[name].shape != (1, *one.shape[1:]):
                raise UserError(
                    f"For one sample the network gives {_what(alone.get(name))}, for two {list(one.shape)}: a squeeze()"
                    " without a dimension takes the batch away; write squeeze(-1), or flatten(1)"
                )
        # a recurrent layer that takes the batch for its steps changes the later samples only
        last = tensors_of(_run(network, _part(noise, 1), words), outputs, rows=1)
        if not all(_alike(one[:1], alone[name]) and _alike(one[1:], last.get(name)) for name, one in first.items()):
            raise UserError(_why_mixed(network, noise))
    specs = [
        TensorSpec(name, (None, *one.shape[1:]), str(one.dtype).removeprefix("torch.")) for name, one in first.items()
    ]
    return Signature(inputs, tuple(specs))


def blamed(error: BaseException, network: nn.Module) -> tuple[str, str]:
    """(dotted name of the innermost module that the error passed through, "" for the network itself; the place in its
    forward: "net.py, line 12")."""
    known = {id(module): name for name, module in network.named_modules()}
    layer, line, trace = "", "", error.__traceback__
    while trace is not None:
        frame, code = trace.tb_frame, trace.tb_frame.f_code
        owner = id(frame.f_locals.get(code.co_varnames[0])) if code.co_argcount else 0
        if owner in known:
            layer = known[owner]
            if code.co_name == "forward":
                line = f"{Path(code.co_filename).name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return layer, line


def _in_order(network: nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """The inputs in the order of the forward's arguments, where they are named after these."""
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):  # a forward that Python knows nothing about
        return inputs
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [p.name for p in parameters if p.kind in by_place]
    asked = [p.name for p in parameters if p.kind in by_place and p.default is inspect.Parameter.empty]
    named = {spec.name: spec for spec in inputs}
    if len(inputs) > 1 and set(named) == set(places[: len(inputs)]) and len(asked) <= len(inputs):
        return tuple(named[place] for place in places[: len(inputs)])
    if len(asked) > len(inputs) or (len(inputs) > 1 and places and set(named) & set(places)):
        first = ",".join(f"{name}=64" for name in (asked if len(asked) > 1 else places))
        raise UserError(
            f"{type(network).__name__} takes {len(asked)} inputs ({', '.join(asked)}), and {len(inputs)}"
            f" {'is' if len(inputs) == 1 else 'are'} described ({', '.join(named)}): give the shape of each under the"
            f" forward's names, the first arguments without a gap, such as --input-shape {first} (64:int64 for ids)"
        )
    return inputs


def _part(inputs: tuple[Tensor, ...], row: int) -> tuple[Tensor, ...]:
    return tuple(tensor[row : row + 1] for tensor in inputs)


def _run(network: nn.Module, inputs: tuple[Tensor, ...], words: str) -> Any:
    try:
        return network(*inputs)
    except Exception as error:  # a stranger's forward may raise anything
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        layer, line = blamed(error, network)
        where = ", ".join(part for part in (f"layer '{layer}'" if layer else "", line) if part)
        if isinstance(error, ABOUT_SIZES):
            of = ", batch 1" if len(inputs[0]) == 1 else ""  # it has run at two samples
            raise UserError(
                f"The network does not run on an input of {words}{of} ({cause}{f'; {where}' if where else ''}): say"
                " with --input-shape what it expects"
            ) from error
        raise UserError(
            f"The network's own forward raises {type(error).__name__}: {cause}{f' ({where})' if where else ''}; mend it"
            " first, it has to run on an input as it is"
        ) from error


def example(shape: tuple[int, ...], kind: str, below: int = 1) -> Tensor:
    """Numbers of this dtype, the same ones each time: 0 to 1, for integers 0 to `below`, which is left out."""
    generator, dtype = torch.Generator().manual_seed(0), getattr(torch, kind)
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator).to(dtype)
    return torch.randint(0, below, shape, generator=generator).to(dtype)


def _first_run(network: nn.Module, inputs: Sequence[TensorSpec], words: str) -> tuple[tuple[Tensor, ...], Any]:
    """Noise for two samples, and the network's answer: integers below the first bound that the network takes."""
    whole = [spec for spec in inputs if not spec.dtype.startswith("float")]
    refused: UserError | None = None
    for below in (TOKENS if any(spec.dtype != "bool" for spec in whole) else TOKENS[2:3]) if whole else TOKENS[:1]:
        noise = tuple(_noise(spec, below) for spec in inputs)
        try:
            return noise, _run(network, noise, words)
        except UserError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _noise(spec: TensorSpec, below: int) -> Tensor:
    if not spec.dtype.startswith("float"):
        return example(spec.with_batch(2), spec.dtype, min(below, 2) if spec.dtype == "bool" else below)
    noise = torch.randn(spec.with_batch(2), generator=torch.Generator().manual_seed(0))
    return noise.to(getattr(torch, spec.dtype))


def tensors_of(answer: Any, names: Sequence[str], rows: int = 2) -> dict[str, Tensor]:
    """The network's outputs for two samples, or for one, by name."""
    parts: dict[str, Any] = {}
    if isinstance(answer, Tensor):
        flat = not names and answer.ndim == 2
        parts = {"logits" if flat else names[0] if names else "output_0": answer}
    elif isinstance(answer, Mapping):
        parts = {str(name): part for name, part in answer.items()}
    elif isinstance(answer, tuple | list):
        labels = names if len(names) == len(answer) else [f"output_{i}" for i in range(len(answer))]
        parts = dict(zip(labels, answer, strict=True))
    for name, part in (parts or {"": answer}).items():
        sound = isinstance(part, Tensor) and part.is_floating_point() and part.ndim > 0
        if not sound or (rows == 2 and len(part) != 2):
            where = f" in its output '{name}'" if len(parts) > 1 else ""
            raise UserError(
                f"For {'two samples' if rows == 2 else 'one sample'} the network gives {_what(part)}{where}: pocketfit"
                " takes networks that give tensors of floats whose first dimension is the batch, one or a tuple, list"
                " or dict of them; wrap this one in a module that returns such parts of it"
            )
    return parts


def _what(answer: Any) -> str:
    if not isinstance(answer, Tensor):
        return f"a {type(answer).__name__}"
    kind = "" if answer.is_floating_point() else f" of {str(answer.dtype).removeprefix('torch.')}"
    return f"the shape {tuple(answer.shape)}{kind}"


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    largest = float(torch.nan_to_num(one, 0, 0, 0).abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=SAME * largest, equal_nan=True)


class _Chances(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's has no hints
    """Notes the operators that draw random numbers, with the module that runs them."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no hints
        self.running, self.found = running, list[tuple[str, str]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.append((self.running[-1] if self.running else "", func.overloadpacket.__name__.rstrip("_")))
        return func(*args, **(kwargs or {}))


def _why_differently(network: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """One sentence about a network with other outputs for the same input."""
    running: list[str] = []
    with _watched(network, running, {}), _Chances(running) as chances:
        network(*inputs)
    layer, drawn = chances.found[0] if chances.found else ("", "")
    where = f"layer '{layer}'" if layer else "its own forward"
    if drawn in ("bernoulli", "native_dropout"):
        cause = f"dropout in {where} stays on in eval mode: write F.dropout(…, training=self.training), or nn.Dropout"
    elif drawn:
        cause = f"{where} draws random numbers ({drawn}): leave them out where self.training is false"
    else:
        cause = "its forward keeps something from one call to the next: outputs may depend on the input alone"
    return (
        f"{type(network).__name__} gives different outputs for the same input, so nothing can be compared with it:"
        f" {cause}"
    )


def _why_mixed(network: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """One sentence about a network whose output for a sample depends on the others in the batch."""
    both: dict[str, Tensor] = {}
    alone: tuple[dict[str, Tensor], ...] = ({}, {})
    for found, given in ((both, inputs), (alone[0], _part(inputs, 0)), (alone[1], _part(inputs, 1))):
        with _watched(network, [], found):
            network(*given)
    mixed = [
        name
        for name, one in both.items()
        if len(one) == 2
        and any(name in each and not _alike(one[i : i + 1], each[name]) for i, each in enumerate(alone))
    ]
    where = f"layer '{mixed[0]}' ({type(network.get_submodule(mixed[0])).__name__})" if mixed and mixed[0] else ""
    return (
        f"The output of {type(network).__name__} for a sample depends on what else is in the batch"
        f"{f', from {where} on' if where else ''}: an app feeds one at a time; give batch norms running statistics"
        " (track_running_stats=True), and keep the batch's dimension out of softmax, mean and the like"
    )


@contextmanager
def _watched(network: nn.Module, running: list[str], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Inside, `running` holds the names of the modules that are being called, and `outputs` the first output of each,
    in the order in which they end."""

    def leave(name: str, answer: Any) -> None:
        running.pop()
        if isinstance(answer, Tensor):
            outputs.setdefault(name, answer.detach().clone())

    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        hooks.append(module.register_forward_hook(lambda _, __, answer, name=name: leave(name, answer)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def counts_fit(labels: int, shape: Sequence[int | None]) -> bool:
    """Whether so many labels fit outputs of this shape: one for each, or one more, where an output is what lies between
    two of them (a logit of two classes, the steps of ordered ones). The task decides which.

    >>> counts_fit(2, (None, 1)), counts_fit(2, (None, 3))
    (True, False)
    """
    return labels == shape[-1] or (len(shape) == 2 and labels == (shape[-1] or 0) + 1)
