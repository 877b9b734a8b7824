"""Quantization-aware training: weights and activations on their grids, taught by the float network or another one.

Step sizes and ranges learn with the weights (Esser et al. 2020, LSQ). Each parameter moves in units of its own grid's
step: one learning rate means the same for a depthwise weight of 10 and a pointwise weight of 0.01, at 4 bits and at 8.

    loss = (1 - labels) D + labels CE + inner mean_i |student_i - exact_i|² / |exact_i|² + layerwise sum_l e_l
    D = (mean_n |e_n|² / |own_n|² + mean_n Var_p(e_n) / mean_n Var(own_n)) / 2
        e = student - own, own: the network itself in float; p = softmax(own_n / T): high for likely classes
    D = T² KL(teacher_T || student_T)           teacher: another network          (Hinton et al. 2015, section 2)

D, with the network itself as teacher: the student starts next to its own float logits, and everything in them is worth
keeping. The squared error needs no temperature and can reach zero. Half of D is the error among the likely classes of a
sample, because they decide the prediction: to second order KL(own_T || student_T) is Var_p(e) / 2 T².

D, with another network as teacher: its logits have a scale and an offset of their own, which cross-entropy training
leaves open, and which a smaller network cannot reach; a squared error would be spent on them. The softened
distributions hold what the two networks have in common, as in passes/train/fine_tune.py.

The term `inner` compares the tensors i inside with those of `exact`, the network before any weight was put on a grid
(as FitNets do with a teacher's: Romero et al. 2015, equation 3). A few hundred images have a few hundred logits rows,
which training learns by heart; the tensors inside have a hundred thousand numbers even where the network is narrow.

The term `layerwise` holds every layer l to its own float outputs: e_l = E |(Q_l - W_l) x|² / E |W_l x|², where x is the
layer's input in `exact`, less its mean (the quadratic form of passes/quantize/rounding.py). It is computed once, from a
few hundred images with ten thousands of positions. Without it layers learn to make up for one another's errors, and
from few images they learn what holds for these images only.

What each term gains: docs/results/notes.md, "Quantization-aware training".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pocketfit import tasks
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid, RangeMethod
from pocketfit.core.plan.quantize import QuantTrain
from pocketfit.core.plan.train import Train
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.core.task.task_list import TaskKey
from pocketfit.passes.graph.aten import off_grid
from pocketfit.passes.graph.feed import Fed, call, each, fed
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.graph.main_answer import main_answer
from pocketfit.passes.graph.parameters import attribute, put
from pocketfit.passes.quantize.rounding import TINY, best_scale, error, layer_inputs
from pocketfit.passes.quantize.simulate.fake_quantize import largest_integer, widest_scale
from pocketfit.passes.quantize.simulate.observe_ranges import observe, set_ranges
from pocketfit.passes.quantize.simulate.simulation import Simulation, WeightGrid, layers_of, simulate
from pocketfit.passes.train.answers import in_order
from pocketfit.passes.train.batches import as_tensor, prefetched, shuffled
from pocketfit.passes.train.distillation import Teacher, divergence, stands_channels_last, teacher_of
from pocketfit.passes.train.guarded.guard import Guard
from pocketfit.passes.train.guarded.objective import Exam, Recipe
from pocketfit.passes.train.malloc import kept_memory
from pocketfit.passes.train.optimizers import schedule
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.tasks.common.probabilities import as_logits

Distance = Callable[[Tensor, Tensor], Tensor]
OBSERVED = 64  # samples from all over the split, from which the first ranges are taken
FIRST_RANGES: RangeMethod = "mse"
LOOKED_AT_BY_GUARD = 256  # samples, at most
LOOKED_AT = 512  # samples from which `layerwise` computes the covariances of layers' inputs
TEMPERATURE = Train.temperature  # for another teacher's logits: the same as in training before the grid
LIKELY_TEMPERATURE = 2.0  # for the network's own logits, to weigh the likely classes
FAINT = 0.01  # share of the samples' mean power: logits with less power count as if they had this much
STRETCH_RATE = 0.1  # of the learning rate: a step that is 1 % wider moves the largest of 127 integers by more than one


@kept_memory()
def apply(
    model: Model,
    settings: QuantTrain,
    samples: Samples,
    grid: Grid,
    *,
    own: Model | None = None,
    exact: Model | None = None,
    teacher: Model | None = None,
    progress: Tick | None = None,
) -> Model:
    """A trained copy, batch norms folded, its weights on the grid; `learned.ranges` has the ranges of its tensors
    by the names of `simulation.tensors_of`. Zeros of the layers in `learned.sparse` stay zero.

    own      the network in float whose logits are to be kept (the unpruned one); None: the model as it is given
    exact    the network in float whose tensors and layers `settings.inner` and `settings.layerwise` compare with; None:
             the model as it is given
    teacher  another network for the same classes, in whatever order, to learn from in place of `own`; None: `own`

    Raises UserError for an empty split, a teacher with other classes or another input, and where training diverges.
    With `settings.guarded` a training that diverges or does harm is taken back instead
    (passes/train/guarded/guard.py). The samples that the guard looks at are trained with as well: with few samples none
    can be held back.
    """
    if len(samples) == 0:
        raise UserError(f"There is nothing to train on: the {settings.split} split is empty")
    asked, distance = _taught_by(model, own or model, teacher)
    simulation = simulate(model, grid)
    rows = np.unique(np.linspace(0, len(samples) - 1, min(OBSERVED, len(samples))).astype(int)).tolist()
    with torch.inference_mode():
        set_ranges(simulation, observe(simulation, samples, rows, histograms=True), FIRST_RANGES)
    simulation.activate()
    in_float = simulate(exact or model, grid) if settings.inner > 0 or settings.layerwise > 0 else None
    layers = _Layers(simulation, in_float, samples, settings.seed) if in_float and settings.layerwise > 0 else None
    inside = _Inside(simulation, in_float) if in_float and settings.inner > 0 else None
    one_network = distance is own_error and not asked.order and (own or model).key == (exact or model).key
    optimizer = _optimizer(simulation, settings.learning_rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    zeros = _zeros(simulation, model.learned.sparse)
    freely = settings.labels == 0 and samples.are_pictures
    laid_out = _as_it_is if stands_channels_last(simulation.network, model) else partial(each, change=in_order)
    guard = _guard(settings, model.task, simulation, asked, distance, samples, laid_out) if settings.guarded else None
    torch.manual_seed(settings.seed)
    given = shuffled(samples, settings.batch_size, settings.steps, seed=settings.seed, freely=freely)
    for taken, (batch, labels) in enumerate(prefetched(given)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(taken / settings.steps) * (1.0 if guard is None else guard.slower)
        inputs = laid_out(batch)
        answers = main_answer(call(simulation.network, inputs))
        exactly = inside.answers(inputs) if inside is not None else None
        # a forward of the user's own may view what it is given
        wanted = exactly if exactly is not None and one_network else asked(each(inputs, torch.Tensor.contiguous))
        loss = _loss(answers, wanted.reshape(answers.shape), distance, labels, settings.labels, model.task)
        if inside is not None:
            loss = loss + settings.inner * inside.error()
        if layers is not None:
            loss = loss + settings.layerwise * layers.error()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        finite = _stepped(optimizer, loss)
        if guard is None and not finite:
            raise UserError("Quantization-aware training diverged; use a smaller learning rate")
        for weight, where in zeros:
            weight.data.masked_fill_(where, 0.0)
        if guard is not None and guard.fell(taken + 1, float(loss.detach()) if finite else math.nan):
            optimizer.state.clear()
        if progress:
            progress(taken + 1, settings.steps)
        if guard is not None and guard.gave_up:
            break
    said = () if guard is None else guard.finish(taken + 1)
    network = fold_batch_norm(model.network, model.signature)
    with torch.no_grad():
        for name, values in _found(simulation).items():
            put(network, name, values)
    ranges = {name: point.range for name, point in simulation.points.items()}
    findings = tuple(dict.fromkeys((*model.findings, *off_grid(simulation.network.graph), *said)))
    learned = replace(model.learned, ranges=ranges)
    return replace(model, network=network, sha256=fingerprint(network), learned=learned, findings=findings)


def _stepped(optimizer: torch.optim.Adam, loss: Tensor) -> bool:
    """A step of the optimizer; where the loss or a gradient is not finite, none, and False."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = bool(torch.isfinite(torch.stack([loss.detach(), *torch._foreach_norm(gradients)])).all())
    if finite:
        optimizer.step()
    return finite


def _as_it_is(inputs: Fed) -> Fed:
    return inputs


def _guard(
    settings: QuantTrain,
    task: TaskKey,
    simulation: Simulation,
    asked: Teacher,
    distance: Distance,
    samples: Samples,
    laid_out: Callable[[Fed], Fed],
) -> Guard:
    """The guard of a training; it judges the network on its grid by the first samples."""
    some = samples.first(LOOKED_AT_BY_GUARD)
    recipe = Recipe(
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        alpha=1 - settings.labels,
        task=task,
    )

    def answered(inputs: Fed) -> Tensor:
        with torch.inference_mode():
            return main_answer(call(simulation.network, laid_out(inputs)))

    first = each(fed(some, slice(0, settings.batch_size)), lambda tensor: as_tensor(tensor.numpy()))
    shape = answered(each(first, lambda tensor: tensor[:1])).shape[1:]
    wanted, labels = asked(first), torch.from_numpy(np.array(some.labels[: settings.batch_size]))
    wanted = wanted.reshape(len(wanted), *shape)
    constant = float(_loss(torch.zeros_like(wanted), wanted, distance, labels, settings.labels, task))
    exam = Exam(some, shape, recipe, asked)
    score = partial(exam.score, answered)
    return Guard(simulation.network, score, constant=constant, rate=settings.learning_rate, average=None, held=False)


class _Inside:
    """The term `inner`: tensors of a simulation where the network is narrow, before they go on their grids, beside the
    same tensors of `exact`, a simulation of the same structure that computes in float."""

    def __init__(self, simulation: Simulation, exact: Simulation) -> None:
        exact.activate(weights=False, points=False)
        self._exact = exact.network
        self._ours: dict[str, Tensor] = {}
        self._theirs: dict[str, Tensor] = {}
        self._names = narrow(simulation)
        for name in self._names:
            simulation.points[name].register_forward_pre_hook(_note(self._ours, name))
            exact.points[name].register_forward_pre_hook(_note(self._theirs, name))

    def answers(self, inputs: Fed) -> Tensor:
        """The outputs of `exact`, whose tensors inside are noted on the way."""
        with torch.no_grad():
            return main_answer(call(self._exact, inputs))

    def error(self) -> Tensor:
        """The mean of |ours - exact|² / |exact|², after both networks have seen the same inputs."""
        errors = [relative_error(self._ours[name], self._theirs[name]) for name in self._names]
        return torch.stack(errors).mean() if errors else torch.zeros(())


class _Layers:
    """The term `layerwise`: the error of each layer of a simulation by itself. Each gets the inputs that it has in
    `exact`, a simulation of the same structure that computes in float."""

    def __init__(self, simulation: Simulation, exact: Simulation, samples: Samples, seed: int) -> None:
        exact.activate(weights=False, points=False)
        self._layers: list[tuple[WeightGrid, Tensor, Tensor]] = []
        with torch.no_grad():
            for name, sums in layer_inputs(exact.network, samples, LOOKED_AT, seed).items():
                _, covariance = sums.moments()
                weight = attribute(exact.network, exact.weights[name].layer.parameter)
                power = error(_rows(weight, covariance), covariance).sum().clamp(min=TINY)
                self._layers.append((simulation.weights[name], weight, covariance / power))

    def error(self) -> Tensor:
        """The sum over the layers of E |(Q - W) x|² / E |W x|², of each layer's x less its mean."""
        found = [error(_rows(grid(weight) - weight, seen), seen).sum() for grid, weight, seen in self._layers]
        return torch.stack(found).sum() if found else torch.zeros(())


def _rows(weight: Tensor, covariance: Tensor) -> Tensor:
    """A weight [outputs, …] as [groups, outputs / groups, k], to fit a covariance [groups, k, k]."""
    return weight.reshape(len(covariance), -1, covariance.shape[1])


def _note(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found[name] = given[0]

    return note


def narrow(simulation: Simulation) -> list[str]:
    """Names of the points inside that hold no more numbers than the point before and the one behind: bottlenecks, sums
    of residuals, ends of stages. All information passes through them, and they are cheapest to compare.

    The input and the outputs are left out. Where no point is such (ever wider layers before a narrow end), the smallest
    point is taken.
    """
    names = list(simulation.points)
    tensors = {node.name: node.meta.get("val") for node in simulation.network.graph.nodes}
    sizes = [math.prod(tensors[name].shape[1:]) for name in names]  # to read the batch's size would fix it
    inside = range(1, len(names) - 1)
    found = [names[i] for i in inside if sizes[i] <= min(sizes[i - 1], sizes[i + 1])]
    return found or [names[i] for i in sorted(inside, key=lambda i: sizes[i])[:1]]


def _optimizer(simulation: Simulation, rate: float) -> torch.optim.Adam:
    """Adam, whose steps are about as large as its learning rate: for each parameter its grid's step times `rate`."""
    groups: list[dict[str, object]] = []
    steps = {point.layer: point.step for point in simulation.points.values()}
    for grid in simulation.weights.values():
        weight = attribute(simulation.network, grid.layer.parameter).detach()
        grid.learn(weight, first_scale(weight, grid.bits, grid.layer.axis))
        groups += [
            {"params": [grid.ratio], "lr": rate},
            {"params": [grid.stretch], "lr": rate * STRETCH_RATE},
        ]
    biases = {layer.bias: layer for layer in layers_of(simulation.network, through_grids=True).values() if layer.bias}
    for name, layer in biases.items():  # once each: a layer may be called several times
        parameter = attribute(simulation.network, name).requires_grad_()
        groups.append({"params": [parameter], "lr": rate * steps.get(layer.name, float(parameter.detach().std()))})
    for point in simulation.points.values():
        ends = [end.requires_grad_() for end in (point.low, point.high) if float(end.detach()) != 0]
        if ends:
            groups.append({"params": ends, "lr": rate * point.step})
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-12)


def _zeros(simulation: Simulation, sparse: Collection[str]) -> list[tuple[nn.Parameter, Tensor]]:
    """The trained weights of these layers, each with a mask of where it is zero now."""
    learning = [grid.ratio for name, grid in simulation.weights.items() if name in sparse]
    return [(ratio, ratio.detach() == 0) for ratio in learning if ratio is not None]


def first_scale(weight: Tensor, bits: int, axis: int) -> Tensor:
    """The scale with the least squared error for each output channel, shaped like `widest_scale`."""
    widest = widest_scale(weight, bits, axis)
    rows = weight.transpose(0, axis).flatten(1)[None]
    best = best_scale(rows, widest.reshape(1, -1, 1), torch.ones(()), largest_integer(bits))
    return best.reshape(widest.shape)


def _taught_by(model: Model, own: Model, teacher: Model | None) -> tuple[Teacher, Distance]:
    """The teacher and the distance to it (D above); a teacher that is the network itself counts as `own`."""
    does = tasks.get(model.task)
    softmax = does.SOFTMAX
    if does.FORM == "boxes":  # errors in pixels would drown those of probabilities
        return teacher_of(model, own if teacher is None else teacher), lambda a, b: does.distance(a, b).mean()
    if teacher is None or (teacher.key, teacher.labels) == (own.key, own.labels):
        return teacher_of(model, own), own_error if softmax else mean_relative_error
    return teacher_of(model, teacher), softened_divergence if softmax else mean_relative_error


def own_error(answers: Tensor, wanted: Tensor) -> Tensor:
    """D for logits [n, ..., classes] of the network itself (or their softmax), as a ratio of powers: half over all
    classes, half over likely ones."""
    answers, wanted = as_logits(answers), as_logits(wanted)
    return (mean_relative_error(answers, wanted) + contested_error(answers, wanted)) / 2


def contested_error(answers: Tensor, wanted: Tensor) -> Tensor:
    """The variance of the error among the classes of a sample that are likely, mean over samples, as a share of the
    variance of logits [n, ..., classes]."""
    likely = (wanted / LIKELY_TEMPERATURE).softmax(-1)
    off = answers - wanted
    off = off - (likely * off).sum(-1, keepdim=True)
    return (likely * off.square()).sum(-1).mean() / wanted.var(-1).mean().clamp(min=TINY)


def mean_relative_error(answers: Tensor, wanted: Tensor) -> Tensor:
    """The mean over samples of 1 / SQNR of a sample's outputs [n, …], as a ratio of powers. Taken for each sample,
    because a sample that is hard to classify has small logits, which the sum over all samples would hardly see."""
    power = wanted.flatten(1).square().sum(1)
    return ((answers - wanted).flatten(1).square().sum(1) / power.clamp(min=FAINT * power.mean())).mean()


def relative_error(tensor: Tensor, wanted: Tensor) -> Tensor:
    """1 / SQNR of a tensor, as a ratio of powers; 0 for a tensor that is to be zero everywhere."""
    power = wanted.square().sum()
    return (tensor - wanted).square().sum() / torch.where(power > 0, power, 1.0) * (power > 0)


def softened_divergence(answers: Tensor, wanted: Tensor) -> Tensor:
    """T² KL(wanted_T || answers_T) of logits [n, ..., classes], or their softmax."""
    softened = (as_logits(x).reshape(-1, x.shape[-1]) / TEMPERATURE for x in (answers, wanted))
    return TEMPERATURE**2 * divergence(*softened)


def _loss(answers: Tensor, wanted: Tensor, distance: Distance, labels: Tensor, share: float, task: str) -> Tensor:
    does, loss = tasks.get(task), (1 - share) * distance(answers, wanted)
    known = torch.from_numpy(does.has_target(labels.numpy()))
    if share > 0 and known.any():
        loss = loss + share * does.loss(answers[known], labels[known]).mean()
    return loss


def _found(simulation: Simulation) -> dict[str, Tensor]:
    """The weights (on the grid where they have one) and biases after training, by name."""
    found = {}
    for layer in layers_of(simulation.network, through_grids=True).values():
        weight = attribute(simulation.network, layer.parameter)
        grid = simulation.weights.get(layer.name)
        found[layer.parameter] = weight if grid is None else grid(weight)
        if layer.bias:
            found[layer.bias] = attribute(simulation.network, layer.bias)
    return found
