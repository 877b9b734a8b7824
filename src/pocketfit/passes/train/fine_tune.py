"""Fine-tuning: with the unpruned network as teacher to recover a pruned one, or on a new head for new classes.

Plans count training in steps, so that a plan means the same on every machine. Whatever shuffles or shifts is drawn
from one seed; on a CPU a run with the same number of threads repeats bit for bit. Where there is a GPU, networks are
trained there in mixed precision (bfloat16 needs no scaling of the loss) and come back to the CPU. Where torchrun has
started several processes, each trains on its rows of every batch (data_parallel.py).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.train import Train
from pocketfit.core.samples import Samples
from pocketfit.core.support.processes import rank
from pocketfit.core.support.progress import Tick
from pocketfit.core.task.task_list import TaskKey
from pocketfit.passes.graph.feed import Fed, call, each, fed, rows_in
from pocketfit.passes.graph.main_answer import main_answer
from pocketfit.passes.train import data_parallel, distillation
from pocketfit.passes.train.answers import Manner, manner, move, thawed
from pocketfit.passes.train.batches import prefetched, shuffled
from pocketfit.passes.train.ema import Average
from pocketfit.passes.train.guarded.clip_gradients import Clip
from pocketfit.passes.train.guarded.guard import NO_SCORE, Guard, held_rows
from pocketfit.passes.train.guarded.objective import Exam, Recipe, objective
from pocketfit.passes.train.heads import training_head
from pocketfit.passes.train.malloc import kept_memory
from pocketfit.passes.train.optimizers import Optimizer, schedule
from pocketfit.passes.train.recalibrate_batch_norm import Norm, norms_of, take_anew
from pocketfit.passes.train.teacher_cache import taught
from pocketfit.sources.models.fingerprint import fingerprint

Batch = tuple[Fed, Tensor, Tensor | None]  # inputs, labels, and a teacher's logits where they are known already
# Each step counts a tenth in a batch norm's running statistics, so that these follow the end of a cosine schedule of
# 100 steps closely enough.
LAG_STEPS, LAG_BATCHES = 100, 10
MOST_CACHED = 2**29  # numbers of a teacher that are kept: 2 GiB
LABEL_SMOOTHING = 0.1  # for transfer without a teacher (Szegedy et al. 2016, section 7)


@dataclass(frozen=True)
class Course:
    """The outcome of a training: the steps taken, and sentences for the user."""

    steps: int
    findings: tuple[str, ...] = ()


def apply(
    model: Model,
    settings: Train,
    samples: Samples,
    *,
    teacher: Model | None,
    cache: Path | None = None,
    progress: Tick | None = None,
) -> Model:
    """A trained copy of the model, after `settings.steps` steps on `samples` (the training split).

    Weights that are zero in the layers of `model.learned.sparse` stay zero. The findings say what the guard has done.

    teacher  a network for the same classes, in any order where both networks name them
    cache    a folder in which the teacher's logits for `settings.views` are kept for other trainings

    Raises UserError where the teacher has other classes or another input than the student, or a layer of
    `settings.features` is not in both networks.
    """
    teaching = None
    if settings.alpha > 0 or settings.features:
        if teacher is None:
            asked = "alpha > 0" if settings.alpha > 0 else "features"
            raise UserError(f"Training with {asked} needs a teacher: give one, or set alpha to 0 and features to none")
        teaching = distillation.teacher_of(model, teacher, settings.features)
    if settings.share < 1:
        order = np.random.default_rng(settings.seed).permutation(len(samples))
        samples = samples.take(np.sort(order[: max(1, round(settings.share * len(samples)))]))
    network = copy.deepcopy(model.network)
    course = optimise(
        network,
        samples,
        recipe_of(settings, settings.learning_rate, model.task),
        steps=settings.steps,
        teacher=teaching,
        views=settings.views,
        cache=cache,
        masks=masks_of(model),
        progress=progress,
    )
    return _with(model, network, course)


def recipe_of(settings: Train, learning_rate: float, task: TaskKey = "classification") -> Recipe:
    """The Recipe of `Train`'s settings, at this learning rate.

    Raises UserError for a distillation that the task's outputs have no use for.
    """
    if settings.distillation == "decoupled" and task != "classification":
        raise UserError(f"Decoupled distillation needs one class a sample, and the task is '{task}': use logits")
    named = ("batch_size", "seed", "temperature", "alpha", "distillation", "beta", "features", "feature_weight", "ema")
    shared = {name: getattr(settings, name) for name in (*named, "optimizer", "guarded")}
    return Recipe(learning_rate=learning_rate, task=task, **shared)


def _with(model: Model, network: nn.Module, course: Course) -> Model:
    """The model with the trained network, and with the training's sentences among its findings."""
    findings = tuple(dict.fromkeys((*model.findings, *course.findings)))
    return replace(model, network=network, sha256=fingerprint(network), findings=findings)


def masks_of(model: Model) -> dict[str, torch.Tensor]:
    """Parameter name -> mask of ones and zeros: 0 where a weight of a layer in `learned.sparse` is zero."""
    weights = {name: model.network.get_submodule(name).weight for name in model.learned.sparse}
    return {f"{name}.weight": (weight.detach() != 0).to(weight.dtype) for name, weight in weights.items()}


def transfer(
    model: Model,
    samples: Samples,
    *,
    epochs: float,
    max_time_s: float | None = None,
    batch_size: int = 64,
    learning_rate: float = 0.02,
    seed: int = 0,
    progress: Tick | None = None,
) -> Model:
    """Fine-tune the whole network on labelled samples, for `epochs` or until `max_time_s`, whichever comes first.

    In both cases the learning rate reaches zero at the end.
    """
    steps = max(1, math.ceil(epochs * len(samples) / batch_size))
    recipe = Recipe(batch_size=batch_size, learning_rate=learning_rate, seed=seed, label_smoothing=LABEL_SMOOTHING)
    network = copy.deepcopy(model.network)
    course = optimise(network, samples, recipe, steps=steps, max_time_s=max_time_s, progress=progress)
    return _with(model, network, course)


def replace_head(model: Model, labels: tuple[str, ...], *, seed: int) -> Model:
    """The model with a new, randomly initialised last linear layer for these labels."""
    network = copy.deepcopy(model.network)
    heads = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise UserError(
            "This network has no linear layer at its end to replace: give a network with a linear classifier"
        )
    name, old = heads[-1]
    torch.manual_seed(seed)
    new = nn.Linear(old.in_features, len(labels), bias=old.bias is not None)
    nn.init.normal_(new.weight, 0, 0.01)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent = network.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], new)
    output = replace(model.signature.outputs[0], shape=(None, len(labels)))
    origin = model.origin
    if origin.kind != "onnx":  # such a network is built with its own head, which gets the size of the stored one
        origin = replace(origin, arguments={**origin.arguments, "classes": len(labels)})
    return replace(
        model,
        network=network,
        labels=labels,
        origin=origin,
        signature=replace(model.signature, outputs=(output,)),
        sha256=fingerprint(network),
    )


@kept_memory()
def optimise(
    network: nn.Module,
    samples: Samples,
    recipe: Recipe,
    *,
    steps: int,
    teacher: distillation.Teacher | None = None,
    views: int = 0,
    cache: Path | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    max_time_s: float | None = None,
    progress: Tick | None = None,
) -> Course:
    """Train `network` in place with a cosine schedule. Where the recipe is guarded, gradients are clipped, and the
    first samples are held out to show whether the training helps (guard.py).

    views, cache  as in `teacher_cache.taught`; 0 views, or more numbers than MOST_CACHED: the teacher runs at every
                  step
    masks         by parameter name; the parameter is multiplied by its mask after every step

    Several processes end with the same weights. While training, the batch norms of each see its own rows; in the end
    all have the running statistics of the first one.
    """
    if len(samples) == 0:
        raise UserError("There is nothing to train on: the training split is empty")
    held = samples.first(held_rows(len(samples))) if recipe.guarded else samples.first(0)
    samples = samples.behind(len(held)) if len(held) else samples
    rows = min(recipe.batch_size, len(samples))
    data_parallel.check_rows(rows)
    mine, place = data_parallel.join(), device()
    how = manner(network, fed(samples, slice(0, rows)))
    teacher = None if teacher is None else teacher.on(place)
    stored = views > 0 and len(samples) * math.prod(how.shape) * views <= MOST_CACHED
    batches = _batches(samples, recipe, steps, teacher if stored else None, views, cache)
    torch.manual_seed(recipe.seed + mine.number)  # dropout draws from here
    with thawed(network) as said:
        how.begin(network, place)
        data_parallel.same_as_first(network)
        run = Run(network, teacher, recipe, how, held if len(held) else samples.first(rows), samples)
        run.masks = [(network.get_parameter(name), mask.to(place)) for name, mask in (masks or {}).items()]
        if recipe.guarded:
            run.watch(judged=len(held) > 0)
        started = time.monotonic()
        for batch in prefetched(batches):
            share = run.taken / steps
            if max_time_s is not None:
                share = data_parallel.from_first(max(share, (time.monotonic() - started) / max_time_s))
                if share >= 1:
                    break
            run.step(batch, rows, schedule(share))
            if progress:
                progress(run.taken, steps)
            if run.over:
                break
        said += [*how.findings, *run.finish(samples)]
        network.eval()
        move(network, "cpu", torch.contiguous_format)
    data_parallel.same_as_first(network)
    if any(not torch.isfinite(p).all() for p in network.parameters()):
        raise UserError("Training diverged: weights are no longer finite; use a smaller learning rate")
    return Course(run.taken, tuple(said))


def _batches(
    samples: Samples, recipe: Recipe, steps: int, teacher: distillation.Teacher | None, views: int, cache: Path | None
) -> Iterator[Batch]:
    """Batches of inputs, labels, and logits of a teacher that has run in advance; each process gets its own rows."""
    size, seed, part = recipe.batch_size, recipe.seed, rank().part
    if teacher is not None:
        return taught(teacher, samples, size, steps, seed=seed, views=views, cache=cache, part=part)
    return ((*batch, None) for batch in shuffled(samples, size, steps, seed=seed, part=part))


def device() -> torch.device:
    """The device on which networks are trained; each of several processes has a GPU of its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank().local) if rank().count > 1 else torch.device("cuda")


def precision(place: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where a GPU has fast kernels for it; float32 on a CPU."""
    return nullcontext() if place.type == "cpu" else torch.autocast(place.type, torch.bfloat16)


class Run:
    """A training under way: a network on its device, its optimizer, and its guard.

    samples  the samples from which the scale of the logits is computed
    learned  those that it trains on
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: distillation.Teacher | None,
        recipe: Recipe,
        how: Manner,
        samples: Samples,
        learned: Samples,
    ) -> None:
        self.network, self.teacher, self.recipe, self.how, self._learned = network, teacher, recipe, how, learned
        self.place = next(network.parameters()).device
        self.taken = 0
        self.masks: list[tuple[nn.Parameter, torch.Tensor]] = []
        self.average = Average(network, recipe.ema) if recipe.ema > 0 else None
        self.exam = Exam(samples, how.shape, recipe, self._taught if teacher else None) if recipe.guarded else None
        self._guard: Guard | None = None
        self._begin()

    def _begin(self) -> None:
        self.head = training_head(self.recipe, self._learned, self._answered, self.place)
        also = () if self.head is None else tuple(self.head.parameters())
        self._optimizer = Optimizer(self.network, self.recipe.optimizer, also)
        self._clip = Clip(self.network, self._optimizer.relative) if self.recipe.guarded else None

    def watch(self, *, judged: bool) -> None:
        """Start the guard: from here on a training that does harm is taken back.

        judged  whether the samples are held out, so that they can judge the training
        """
        assert self.exam is not None
        ask = partial(self.exam.score, self._answered) if judged else lambda: NO_SCORE
        self._guard = Guard(
            self.network,
            ask,
            constant=self.exam.constant,
            rate=self.recipe.learning_rate,
            average=self.average,
        )

    @property
    def over(self) -> bool:
        """Whether further training is useless: the guard gave up."""
        return self._guard is not None and self._guard.gave_up

    def step(self, batch: Batch, rows: int, slower: float) -> float:
        """Take one step on this process's part of a batch of `rows`, at `slower` times the recipe's learning rate;
        returns the loss of the whole batch.
        """
        inputs, labels, answers = batch
        known = None if answers is None else answers.to(self.place)
        loss = self.loss(self._here(inputs), labels.to(self.place), known)
        torch.autograd.backward(loss)
        whole = data_parallel.average_gradients(self._optimizer.parameters, rows_in(inputs) / rows, loss)
        if self._clip is not None and not self._clip(self._optimizer.parameters):
            whole = math.nan
        if self._guard is not None:
            slower *= self._guard.slower
        self._optimizer.step(self.recipe.learning_rate * slower)
        self._mask()
        self.taken += 1
        if self.average is not None:
            self.average.update()
        if self._guard is not None and self._guard.fell(self.taken, whole):
            self._begin()
        return whole

    def finish(self, samples: Samples) -> tuple[str, ...]:
        """Give the network the weights that are handed over; returns sentences.

        After a brief training the running statistics of batch norms come from weights that were still moving. They are
        estimated again on some of these samples, where that helps.
        """
        if self.average is not None:
            self.average.hand_over()
        if self._guard is None:
            return ()
        norms = norms_of(self.network)
        if norms and self.taken <= LAG_STEPS and len(samples) > 1:
            self._guard.catch_up(partial(self._norms_anew, norms, samples))
        return self._guard.finish(self.taken)

    def _norms_anew(self, norms: Sequence[Norm], samples: Samples) -> None:
        count = min(len(samples), LAG_BATCHES * self.recipe.batch_size)
        parts = np.array_split(np.arange(count), math.ceil(count / self.recipe.batch_size))
        self.network.eval()
        with precision(self.place):
            take_anew(
                self.network,
                norms,
                (self.how.laid_out(self._here(fed(samples, part))) for part in parts),
            )
        self.network.train()

    def loss(self, inputs: Fed, labels: Tensor, answers: Tensor | None) -> Tensor:
        """(1 - alpha) CE + alpha D + feature_weight AT; the last two with a teacher or its stored logits only."""
        inputs = self.how.laid_out(inputs)
        with precision(self.place):
            logits, maps = distillation.watched(self.network, self.recipe.features, inputs, self.how.shape)
            wanted = self.teacher(inputs) if self.teacher is not None and answers is None else answers
        scale = 1.0 if self.exam is None else self.exam.scale
        return objective(logits, labels, self.recipe, wanted, maps, scale, self.head)

    def _mask(self) -> None:
        """Put zeros back where the masks have them."""
        with torch.no_grad():
            for parameter, mask in self.masks:
                parameter.mul_(mask)

    def _here(self, inputs: Fed) -> Fed:
        return each(inputs, lambda tensor: tensor.to(self.place))

    def _answered(self, inputs: Fed) -> Tensor:
        """The logits of the network as it would be handed over."""
        self.network.eval()
        with torch.inference_mode(), precision(self.place):
            logits = main_answer(call(self.network, self.how.laid_out(self._here(inputs))), self.how.shape)
        self.network.train()
        return logits.float()

    def _taught(self, inputs: Fed) -> Tensor:
        assert self.teacher is not None
        with precision(self.place):
            return self.teacher(self._here(inputs))
