"""The statistics of groups of channels that criteria read; those that need samples are computed on first use."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pocketfit import tasks
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.prune import Prune
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.passes.graph.aten import argument, operation, shape_of
from pocketfit.passes.graph.channel_graph import ChannelGraph, Group, followed
from pocketfit.passes.graph.feed import call, fed, rows_in
from pocketfit.passes.graph.interpret import Run, batches
from pocketfit.passes.graph.labels import NO_CHANNEL, vector
from pocketfit.passes.graph.main_answer import main_answer
from pocketfit.passes.graph.operators import Fact, having

GRADIENT_BATCH = 32  # samples in a batch; each batch gives one gradient of `first_order`
Place = tuple[str, int]  # (parameter, dimension)
Floats = NDArray[np.float64]


class Survey:
    """The statistics of one network for one criterion, each computed once. The network is not changed."""

    def __init__(
        self, model: Model, graph: ChannelGraph, settings: Prune, samples: Samples | None, criterion: str
    ) -> None:
        self.model, self.graph, self.settings, self.samples, self.criterion = model, graph, settings, samples, criterion
        self.tensors = {name: tensor.detach() for name, tensor in model.network.state_dict().items()}
        self.slices = {(part.parameter, part.dim): part.ids for part in graph.slices}
        self.makers = graph.producers
        self.norms = {
            f"{name}.weight"
            for name, layer in model.network.named_modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        }
        self.findings: list[str] = []

    def reads(self, place: Place) -> bool:
        """Whether this is the input dimension of a convolution or linear layer."""
        return place not in self.makers and any((place[0], dim) in self.makers for dim in (0, 1))

    def rows(self) -> NDArray[np.int64]:
        """The samples that are looked at, in order."""
        if self.samples is None or not len(self.samples):
            raise UserError(f"The criterion '{self.criterion}' looks at samples, and there are none: give it some")
        order = np.random.default_rng(self.settings.seed).permutation(len(self.samples))
        return np.sort(order[: self.settings.samples])

    @cached_property
    def first_order(self) -> dict[Place, Floats]:
        """float64 [batches, size] for each place: the sum of g w over all other dimensions."""
        found: dict[Place, list[Floats]] = defaultdict(list)
        for _, gradients, weights in self._gradients(GRADIENT_BATCH):
            for name, dim in self._places(gradients):
                products = gradients[name].double() * weights[name].double()
                found[name, dim].append(_by_entry(products, dim))
        return {place: np.stack(values) for place, values in found.items()}

    @cached_property
    def second_order(self) -> dict[Place, Floats]:
        """float64 [size] for each place: the sum over all other dimensions of w² times the samples' mean g²."""
        total: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        count = 0
        for count, gradients, weights in self._gradients(1):  # noqa: B007 (the last count is that of all samples)
            for name, gradient in gradients.items():
                total[name] = total[name].add_(gradient.square()) if name in total else gradient.square()
        return {
            (name, dim): _by_entry(total[name].double() / count * weights[name].double().square(), dim)
            for name, dim in self._places(total)
        }

    @cached_property
    def activations(self) -> dict[int, float]:
        """Mean |a| of each channel (by its id) in the tensors from which layers read it."""

        def mean_abs(maps: Tensor) -> Tensor:
            return maps.abs().mean((2, 3))

        return self._of_maps(mean_abs, before_pooling=False)

    @cached_property
    def ranks(self) -> dict[int, float]:
        """Mean rank of each channel's feature maps [H, W] (by its id), taken before they are pooled."""
        return self._of_maps(lambda maps: torch.linalg.matrix_rank(maps).double(), before_pooling=True)

    def _places(self, gradients: dict[str, Tensor]) -> list[Place]:
        return [place for place in self.slices if place[0] in gradients]

    def _gradients(self, batch_size: int) -> Iterator[tuple[int, dict[str, Tensor], dict[str, Tensor]]]:
        """(samples so far, gradients of a batch's mean loss, weights), in eval mode."""
        task = tasks.get(self.model.task)
        rows, samples = self.rows(), self.samples
        assert samples is not None  # rows() has seen to it
        network = copy.deepcopy(self.model.network).requires_grad_(True)
        parameters = dict(network.named_parameters(remove_duplicate=False))
        weights = {name: parameter.detach() for name, parameter in parameters.items()}
        unlabelled = 0
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            answers = main_answer(call(network, fed(samples, part)))
            targets = np.asarray(samples.labels[part])
            known = task.has_target(targets)
            self._check_targets(answers, targets)
            unlabelled += int((~known).sum())
            each = []  # samples without a target are judged by the network's own answers
            if known.any():
                each.append(task.loss(answers[torch.from_numpy(known)], torch.from_numpy(targets[known])))
            if not known.all():
                each.append(task.influence(answers[torch.from_numpy(~known)]))
            loss = torch.cat(each).mean()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            gradients = {
                name: torch.zeros_like(weights[name]) if gradient is None else gradient
                for name, gradient in zip(parameters, found, strict=True)
            }
            yield start + len(part), gradients, weights
        if unlabelled:
            self.findings.append(
                f"The criterion '{self.criterion}' looked at {len(rows)} samples, {unlabelled} of them without a "
                "label: the network's own answers stood in for them."
            )

    def _check_targets(self, answers: Tensor, targets: NDArray[np.generic]) -> None:
        task = tasks.get(self.model.task)
        if reason := task.why_not((TensorSpec("output", (None, *answers.shape[1:])),), self.model.labels):
            raise UserError(
                f"The criterion '{self.criterion}' needs the loss of the task '{task.NAME}', and {_lower(reason)}"
            )
        if task.NAME == "classification" and int(targets.max()) >= answers.shape[1]:
            raise UserError(
                f"The criterion '{self.criterion}' met the label {int(targets.max())}, and the network has "
                f"{answers.shape[1]} outputs: give samples of its own classes"
            )

    def _of_maps(self, measure: Callable[[Tensor], Tensor], *, before_pooling: bool) -> dict[int, float]:
        """The mean over samples and tensors of measure([samples, C, H, W]) -> [samples, C], by id of the channel."""
        rows, samples = self.rows(), self.samples
        assert samples is not None
        program, walk = followed(self.model.network, self.model.signature)
        ends = walk.finish()
        found: dict[fx.Node, tuple[int, NDArray[np.int64]]] = {}
        for node in program.graph.nodes:
            source = _read_by(node, walk.names, ends)
            if source is None:
                continue
            source = _before_pooling(source) if before_pooling else source
            labels = walk.labels.roots(walk.of(source))
            if len(dims := walk.labels.varying_dims(labels)) == 1:
                found[source] = dims[0], vector(labels, dims[0]).numpy()
        total: dict[fx.Node, Tensor] = {}
        left = len(rows)

        def see(node: fx.Node, value: Any) -> Any:
            if node in found:
                maps = value.movedim(found[node][0], 1)[: min(left, len(value))]
                maps = maps if maps.ndim == 4 else maps.reshape(*maps.shape[:2], 1, math.prod(maps.shape[2:]))
                seen = measure(maps).double().sum(0)
                total[node] = total[node] + seen if node in total else seen
            return value

        run = Run(program, see)
        with torch.no_grad():
            for batch in batches(samples, rows.tolist()):
                run.on(*batch)
                left -= rows_in(batch)
        values: dict[int, list[float]] = defaultdict(list)
        for node, (_, ids) in found.items():
            for label, value in zip(ids.tolist(), (total[node] / len(rows)).tolist(), strict=True):
                values[label].append(value)
        return {label: float(np.mean(seen)) for label, seen in values.items() if label != NO_CHANNEL}


@dataclass(frozen=True)
class Statistics:
    """The statistics of one group of n channels, in the order of `group.ids`."""

    survey: Survey
    group: Group

    @property
    def seed(self) -> int:
        return self.survey.settings.seed

    def makes(self) -> Floats:
        """float64 [n, k]: the weights that make each channel, from all convolutions and linear layers that make it."""
        return self._weights(self.group.producers)

    def reads(self) -> Floats:
        """float64 [n, k]: the weights that read each channel, in the layers behind; k is 0 where none does."""
        return self._weights(self._readers())

    def gammas(self) -> Floats:
        """float64 [n, k]: the factors of the batch norms that each channel passes; k is 0 where there is none."""
        return self._weights(tuple(place for place in self.group.members if place[0] in self.survey.norms))

    def first_order(self) -> Floats:
        """float64 [batches, n]: sum of g w over the weights that read each channel, g from batches of 32 samples.

        Zeroing the channel changes the mean loss by minus this, to first order. Where no layer reads the channel, the
        sum is over the weights that make it.
        """
        entries = self.survey.first_order
        places = self._readers() or self.group.producers
        return sum((self._gathered(place, entries[place]) for place in places), np.zeros((1, len(self.group.ids))))

    def second_order(self) -> Floats:
        """float64 [n]: sum over the same weights of w² E[g²], the mean taken over single samples."""
        entries = self.survey.second_order
        places = self._readers() or self.group.producers
        return sum((self._gathered(place, entries[place]) for place in places), np.zeros(len(self.group.ids)))

    def activation(self) -> Floats:
        """float64 [n]: mean |a| over samples, positions and the tensors from which layers read the channel."""
        return self._by_id(self.survey.activations)

    def rank(self) -> Floats:
        """float64 [n]: mean rank of the feature maps, before any pooling."""
        return self._by_id(self.survey.ranks)

    def _readers(self) -> tuple[Place, ...]:
        return tuple(place for place in self.group.members if self.survey.reads(place))

    def _entries(self, place: Place) -> NDArray[np.int64]:
        """int64 [n, entries of each channel]: the positions of each channel's entries along this dimension."""
        ids = self.survey.slices[place]
        return np.stack([np.flatnonzero(ids == label) for label in self.group.ids])

    def _weights(self, places: tuple[Place, ...]) -> Floats:
        count = len(self.group.ids)
        parts = [np.empty((count, 0))]
        for name, dim in places:
            values = self.survey.tensors[name].double().movedim(dim, 0).numpy()
            parts.append(values[self._entries((name, dim))].reshape(count, -1))
        return np.concatenate(parts, axis=1)

    def _gathered(self, place: Place, values: Floats) -> Floats:
        """[..., size] -> [..., n]: the sum of each channel's entries."""
        gathered: Floats = values[..., self._entries(place)].sum(-1)
        return gathered

    def _by_id(self, values: dict[int, float]) -> Floats:
        missing = [label for label in self.group.ids.tolist() if label not in values]
        if missing:
            raise UserError(
                f"The criterion '{self.survey.criterion}' finds no layer that reads the channels of layer "
                f"'{self.group.name}': choose one that looks at weights"
            )
        return np.array([values[label] for label in self.group.ids.tolist()])


def _by_entry(values: Tensor, dim: int) -> Floats:
    """Sums over all dimensions but one: [3, 4, 5], 1 -> [4]."""
    summed: Floats = values.movedim(dim, 0).flatten(1).sum(1).numpy() if values.ndim > 1 else values.numpy()
    return summed


def _read_by(node: fx.Node, parameters: dict[str, str], known: Container[Place]) -> fx.Node | None:
    """The input tensor of a layer; None where the node is no layer whose input channels the graph knows."""
    if node.op != "call_function" or operation(node) not in having(Fact.LAYER):
        return None
    source, weight = argument(node, "input"), argument(node, "weight")
    ours = isinstance(weight, fx.Node) and (parameters.get(weight.name, ""), _in_dim(node)) in known
    return source if ours and isinstance(source, fx.Node) and source.op == "call_function" else None


def _in_dim(node: fx.Node) -> int:
    return 0 if operation(node).startswith("conv_transpose") else 1


def _before_pooling(node: fx.Node) -> fx.Node:
    """The feature maps [H, W] from which this tensor was made by pooling or flattening; else the tensor itself."""
    while (
        operation(node) in having(Fact.POOLS)
        and isinstance(source := node.args[0], fx.Node)
        and source.op == "call_function"
    ):
        if len(shape_of(source)) < len(shape_of(node)):
            break
        node = source
    return node


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
