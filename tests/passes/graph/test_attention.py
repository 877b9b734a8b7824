"""Attention heads go whole: without a head a network answers as if that head's part of the next layer were zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketfit.core.plan.prune import Prune
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune import prune_channels
from tests.brought.networks import opened

# network -> (the group of heads, the weight behind the attention)
HEADS = {
    "attention": ("attention", "attention.out_proj.weight"),
    "vit": ("qkv.0", "proj.0.weight"),
    "transformer encoder": ("encoder.layers.0.self_attn", "encoder.layers.0.self_attn.out_proj.weight"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_removed_head_is_a_head_that_gives_zero(name: str) -> None:
    model, (group_name, behind) = opened(name), HEADS[name]
    graph = trace(model.network, model.signature)
    group = next(group for group in graph.groups if group.name == group_name)
    assert group.prunable and len(group.ids) == 4 and graph.heads.issuperset(group.ids.tolist())
    assert group.members[group.producers[0]] == 24 and group.members[behind, 1] == 8
    pruned = prune_channels.apply(model, Prune(0.0, keep=((group_name, 72),)), graph=graph)
    stays = pruned.network.get_parameter(behind)
    weight = model.network.get_parameter(behind)
    assert stays.shape == (32, 24)
    blocks = [weight[:, 8 * head : 8 * head + 8] for head in range(4)]
    kept = [any(torch.equal(block, stays[:, 8 * i : 8 * i + 8]) for i in range(3)) for block in blocks]
    assert kept.count(True) == 3
    given = torch.randn(model.signature.inputs[0].with_batch(3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        blocks[kept.index(False)].zero_()
        wanted = model.network(given)
        np.testing.assert_allclose(pruned.network(given), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
