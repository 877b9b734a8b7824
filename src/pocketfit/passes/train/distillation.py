"""What a student learns from its teacher: softened logits, whole or decoupled, and attention maps of layers.

    logits      KD  = KL(teacher_T || student_T)                          (Hinton et al. 2015, section 2)
    decoupled   DKD = TCKD + beta NCKD                                    (Zhao et al. 2022, equation 7)
    features    AT  = sum over layers of |Q_S/|Q_S| - Q_T/|Q_T||²         (Zagoruyko and Komodakis 2017, equation 2)

The caller multiplies the first two by T², so that the size of the gradients does not depend on the temperature T.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.feed import Fed, as_fed, call, each
from pocketfit.passes.graph.main_answer import main_answer
from pocketfit.passes.train.answers import in_order, laid_out


@dataclass(frozen=True)
class Teacher:
    """A teacher network, with its classes in the student's order.

    order     for each class of the student, the teacher's output for it; empty where both have the same order
    features  layers whose attention maps are appended to the logits
    key       identifies everything that the outputs depend on, for the cache
    in_order  whether images must be contiguous with channels first, as views in the network's code need that
    """

    network: nn.Module
    order: tuple[int, ...] = ()
    features: tuple[str, ...] = ()
    key: str = ""
    in_order: bool = False

    def __call__(self, inputs: Fed) -> Tensor:
        """float32 [n, numbers + positions of all maps]: the outputs, and behind them the maps of `features`."""
        inputs = each(inputs, in_order) if self.in_order else inputs
        with torch.inference_mode():
            logits, maps = watched(self.network, self.features, inputs)
            if self.order:
                logits = logits[:, list(self.order)]
            answers = torch.cat([logits.flatten(1), *maps], 1)
        return answers.float().clone()

    def on(self, place: torch.device) -> Teacher:
        """The same teacher on the device where a student is trained."""
        return self if place.type == "cpu" else replace(self, network=copy.deepcopy(self.network).to(place))


def teacher_of(student: Model, teacher: Model, features: Sequence[str] = ()) -> Teacher:
    """The teacher for this student, its classes brought into the student's order.

    Raises UserError where it has other classes, takes other values, or where a layer of `features` is not in both.
    """
    order = class_order(teacher, student)
    if values := other_values(teacher, student):
        raise UserError(f"The teacher's images are not the student's: {values}; use a teacher that is fed alike")
    for name in features:
        for network, whose in ((student.network, "student"), (teacher.network, "teacher")):
            _check_layer(network, name, whose)
    key = f"{teacher.key} {order} {tuple(features)}"
    found = Teacher(teacher.network, order, tuple(features), key, not stands_channels_last(teacher.network, teacher))
    if features:
        _check_maps(student, found)
    return found


def class_order(teacher: Model, student: Model) -> tuple[int, ...]:
    """For each class of the student, its place among the teacher's; () where that is the same, or names are missing.

    Raises UserError where the classes are not the same ones.
    """
    theirs, ours = _class_count(teacher), _class_count(student)
    if theirs != ours:
        raise UserError(
            f"The teacher knows {theirs} classes and the student {ours}: use a teacher for the same classes"
        )
    if not _named(teacher) or not _named(student) or teacher.labels == student.labels:
        return ()
    known = {name: index for index, name in enumerate(teacher.labels)}
    missing = next((name for name in student.labels if name not in known), None)
    if missing is not None:
        extra = next(name for name in teacher.labels if name not in student.labels)
        raise UserError(
            f"The teacher does not know the student's class '{missing}' (and the student not the teacher's"
            f" '{extra}'): use a teacher for the same classes"
        )
    return tuple(known[name] for name in student.labels)


def other_values(teacher: Model, student: Model) -> str:
    """How the input tensors of the two differ in colour or values; "" where they do not.

    Resizing does not count: the teacher gets the student's images.
    """
    if not _takes_pictures(teacher) and not _takes_pictures(student):
        return ""
    for word in ("colour", "scale", "mean", "std"):
        theirs, ours = getattr(teacher.preprocess, word), getattr(student.preprocess, word)
        if theirs != ours:
            return f"its {word} is {_words(theirs)}, the student's {_words(ours)}"
    return ""


def check_teacher(teacher: Model, student: Model) -> None:
    """Refuse a teacher for other classes, or for another input than the unpruned student's; in a sentence."""
    class_order(teacher, student)
    theirs, ours = ([(spec.shape[1:], spec.dtype) for spec in model.signature.inputs] for model in (teacher, student))
    if theirs != ours:
        taken, fed = (" and ".join(_words(shape, "x") for shape, _ in each) for each in (theirs, ours))
        raise UserError(
            f"The teacher takes an input of {taken} and the student one of {fed}: use a teacher of the same size"
        )
    if values := other_values(teacher, student):
        raise UserError(f"The teacher's images are not the student's: {values}; use a teacher that is fed alike")


def watched(
    network: nn.Module, layers: Sequence[str], inputs: Fed, shape: tuple[int, ...] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The outputs [n, ...], and the attention map [n, height * width] of each named layer's output.

    shape  of one sample's logits, by which they are found among several outputs (`answers.main_answer`)

    An in-place activation behind such a layer counts as a part of it; for a layer that is called more than once the
    last call counts.
    """
    outputs: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _l, _i, out, name=name: outputs.update({name: out}))
        for name in layers
    ]
    try:
        logits = main_answer(call(network, inputs), shape)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, [attention(outputs[name]) for name in layers]


def attention(output: Tensor) -> Tensor:
    """Squares summed over channels, then brought to length one: [n, C, H, W] -> [n, H * W].

    Q / |Q| of equation 2, with F_sum^p, p = 2 (Zagoruyko and Komodakis 2017, section 3.1).
    """
    return nn.functional.normalize(output.float().square().sum(1).flatten(1), dim=1)


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Half the mean square of the difference, summed over layers: maps [n, H * W] -> a number.

    Equation 2 with squared distances, each layer's beta divided by the elements of its map and by the batch, as the
    authors do (section 4.1: beta = 1000 / (elements of the map and batch size)).
    """
    return (
        torch.stack([(ours - theirs).square().mean() for ours, theirs in zip(student, teacher, strict=True)]).sum() / 2
    )


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of softened logits [n, classes], the mean over the batch."""
    return nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, beta: float) -> Tensor:
    """TCKD + beta NCKD of softened logits [n, classes], the mean over the batch (Zhao et al. 2022, equation 7).

    A sample without a label (-1) has no target class: all classes are non-target ones, whose divergence counts once.
    """
    known = labels >= 0
    rows = nn.functional.kl_div(
        student[~known].log_softmax(-1), teacher[~known].log_softmax(-1), reduction="none", log_target=True
    )
    target, others = target_parts(student[known], teacher[known], labels[known])
    return (rows.sum() + (target + beta * others).sum()) / len(labels)


def target_parts(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each sample [n]; KD = TCKD + (1 - p_t) NCKD with the teacher's p_t (Zhao et al. 2022, eq. 6).

    TCKD  divergence of (target class, all others together);  NCKD  of the others among themselves
    """
    target = nn.functional.one_hot(labels, student.shape[1]).bool()

    def apart(logits: Tensor) -> tuple[Tensor, Tensor]:
        """log of [p_t, 1 - p_t], and of the distribution over the other classes [n, classes - 1]."""
        logs = logits.log_softmax(-1)
        rest = logs[~target].view(len(logs), logs.shape[1] - 1)
        total = rest.logsumexp(-1, keepdim=True)
        return torch.cat([logs[target][:, None], total], 1), rest - total

    (ours, ours_rest), (theirs, theirs_rest) = apart(student), apart(teacher)
    return (theirs.exp() * (theirs - ours)).sum(1), (theirs_rest.exp() * (theirs_rest - ours_rest)).sum(1)


def stands_channels_last(network: nn.Module, model: Model) -> bool:
    """Whether a form of the model's network runs on images that lie channels last in memory; tried with two blank
    inputs.
    """
    blank = aten.zeros(model.signature, 2)
    if all(tensor.ndim != 4 for tensor in blank):
        return True
    turned = [laid_out(tensor, torch.channels_last) if tensor.ndim == 4 else tensor for tensor in blank]
    try:
        with torch.inference_mode():
            network(*turned)
    except RuntimeError:  # a view that is written for the other layout
        return False
    return True


def _check_layer(network: nn.Module, name: str, whose: str) -> None:
    names = [known for known, _ in network.named_modules() if known]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or names[:1] + names[-1:]
        raise UserError(f"The {whose} has no layer '{name}' to compare features of; near it are {', '.join(near)}")


def _check_maps(student: Model, teacher: Teacher) -> None:
    """Raise UserError unless both networks have maps of the same size at each layer; tried with a blank input."""
    blank = as_fed(aten.zeros(student.signature, 1))
    for name in teacher.features:
        sizes = []
        for network, whose in ((student.network, "student"), (teacher.network, "teacher")):
            seen: list[Tensor] = []
            hook = network.get_submodule(name).register_forward_hook(lambda _l, _i, out, seen=seen: seen.append(out))
            with torch.inference_mode():
                call(network, blank)
            hook.remove()
            if not seen or not isinstance(seen[-1], Tensor) or seen[-1].ndim != 4:
                raise UserError(
                    f"The {whose}'s layer '{name}' gives no image [batch, channels, height, width] to compare: name a"
                    f" convolution or a block"
                )
            sizes.append(seen[-1].shape[2:])
        if sizes[0] != sizes[1]:
            raise UserError(
                f"Layer '{name}' gives {_words(sizes[0], 'x')} positions in the student and {_words(sizes[1], 'x')} in"
                f" the teacher: name layers that see the image at the same size"
            )


def _class_count(model: Model) -> int | None:
    return len(model.labels) or model.signature.outputs[0].shape[-1]


def _named(model: Model) -> bool:
    """Whether the labels are real names; numbers in order are not (search/run/job.py sets them for lack of names)."""
    return bool(model.labels) and model.labels != tuple(map(str, range(len(model.labels))))


def _takes_pictures(model: Model) -> bool:
    return len(model.signature.inputs[0].shape) == 4


def _words(value: object, joint: str = ", ") -> str:
    return joint.join(f"{v:g}" for v in value) if isinstance(value, tuple | list) else f"{value}"
