"""Several processes that train one network, each on its rows of every batch: how they exchange gradients and weights.

torchrun starts them (core/support/processes.py). The mean of their gradients, weighed by rows, is the gradient of the
whole batch, so that a plan's steps and batch size mean the same for any number of processes; only batch norms see fewer
rows at a time. Gradients are summed in one go after the backward pass. That is fast enough for small networks, and
needs no wrapper (DistributedDataParallel) around the network, which copies, averages and masks of weights would have to
unwrap. One process alone exchanges nothing.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from pocketfit.core.errors import UserError
from pocketfit.core.support.processes import Rank, rank

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait while the first process works alone; torchrun ends all if one dies
FEWEST_ROWS = 2  # rows of a process, at least: a batch norm behind global pooling has no variance over one row


def join() -> Rank:
    """This process's rank; where there are several processes, the first call joins them, and waits until all are there.

    Tensors on CPUs go by gloo, those on GPUs by NCCL. Raises UserError where a machine has fewer GPUs than processes.
    """
    mine = rank()
    if mine.count > 1 and not distributed.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            if mine.local >= torch.cuda.device_count():
                raise UserError(
                    f"Process {mine.local} of this machine finds no GPU of its own among {torch.cuda.device_count()}:"
                    f" start torchrun with --nproc-per-node {torch.cuda.device_count()}"
                )
            torch.cuda.set_device(mine.local)
            backend = "cpu:gloo,cuda:nccl"
        distributed.init_process_group(backend, timeout=PATIENCE)
        atexit.register(distributed.destroy_process_group)
    return mine


def check_rows(rows: int) -> None:
    """Refuse batches that leave a process fewer than FEWEST_ROWS rows."""
    count = rank().count
    if count > 1 and rows < FEWEST_ROWS * count:
        raise UserError(
            f"Batches of {rows} cannot be shared by {count} processes: give each at least {FEWEST_ROWS} rows, by fewer"
            " processes or larger batches"
        )


def average_gradients(parameters: Iterable[nn.Parameter], share: float, loss: Tensor) -> float:
    """Replace each gradient by the mean over all processes, and return the mean of their losses.

    share  this process's part of the batch's rows
    """
    if rank().count == 1:
        return float(loss.detach())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [*(gradient.reshape(-1) for gradient in gradients), loss.detach().reshape(1)]
    flat = torch.cat(parts).mul_(share)
    distributed.all_reduce(flat)
    *means, whole = torch.split(flat, [part.numel() for part in parts])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view(gradient.shape))
    return float(whole)


@torch.no_grad()
def same_as_first(network: nn.Module) -> None:
    """Replace parameters and buffers by those of the first process."""
    if rank().count == 1:
        return
    for tensor in (*network.parameters(), *network.buffers()):
        sent: Tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        distributed.broadcast(sent, 0)
        tensor.copy_(sent)


def from_first(value: T) -> T:
    """The `value` of the first process, in every process."""
    if join().count == 1:
        return value
    sent = [value]
    distributed.broadcast_object_list(sent, 0)
    return sent[0]


def file_from_first(path: Path) -> None:
    """Copy the file of the first process to each process's own `path`; machines need not share their disks."""
    mine = join()
    if mine.count == 1:
        return
    content = from_first(path.read_bytes() if mine.first else b"")
    if not mine.first:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
