"""ATen operators by name, and what is true of them: a new operator is a row here, and a rule in channel_rules.py.

What is not known here or there is kept whole by pruning, stays apart from rescaling, and is named in a finding.
"""

from __future__ import annotations

from enum import Flag, auto
from functools import cache


class Fact(Flag):
    """
    LAYER        has a weight, the second argument
    RECURRENT    has weights for several gates and steps
    FUSED        runtimes compute it with the layer in front of it, whose own output is never stored
    CLIPS        cuts values off, each by itself
    ELEMENTWISE  another function of each value by itself
    MOVES        gives values of its input, in other places or fewer: a factor on a channel goes through
    VIEWS        says other sizes for the same memory
    ADDITIVE     a constant that is added to a channel goes through
    MOMENTS      mean and deviation of what comes out follow from those of what goes in
    SAME_GRID    what lies on a grid lies on it behind it, too
    POOLS        stands between a layer and what reads its channels, and keeps each channel to itself
    CONSTANT     a channel that is the same for every input is so behind it
    """

    LAYER = auto()
    RECURRENT = auto()
    FUSED = auto()
    CLIPS = auto()
    ELEMENTWISE = auto()
    MOVES = auto()
    VIEWS = auto()
    ADDITIVE = auto()
    MOMENTS = auto()
    SAME_GRID = auto()
    POOLS = auto()
    CONSTANT = auto()


L, M, A, S, G, P, V, C = (
    *(Fact.LAYER, Fact.MOVES, Fact.ADDITIVE, Fact.MOMENTS, Fact.SAME_GRID, Fact.POOLS, Fact.VIEWS, Fact.CONSTANT),
)
_ROWS: tuple[tuple[str, Fact], ...] = (
    ("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear", L),
    ("gru lstm rnn_relu rnn_tanh", Fact.RECURRENT),
    ("clamp hardtanh relu relu6", Fact.FUSED | Fact.CLIPS),
    ("elu gelu hardsigmoid hardswish leaky_relu mish prelu selu sigmoid silu softplus tanh", Fact.ELEMENTWISE),
    ("reshape view", M | V | A | S | G | P | C),
    ("clone contiguous detach dropout feature_dropout flatten squeeze", M | A | S | G | P | C),
    ("_unsafe_view", M | V | A | S | C),
    ("alias chunk getitem permute select slice split split_with_sizes transpose unsqueeze", M | A | S | G | C),
    ("max_pool2d", M | A | S | G | P),
    ("unflatten", M | V | S | C),
    ("expand", M | S | G | C),
    ("t", M | A | S | C),
    ("max_pool1d", M | A | S | P),
    ("pixel_shuffle", M | S | C),
    ("constant_pad_nd pad", M | S | G),
    ("cat concat", A | S | C),
    ("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d mean", A | S | P),
    ("amax avg_pool1d avg_pool2d sum", S | P),
    ("expand_as lift_fresh_copy movedim narrow swapaxes unbind view_as", M | C),
    ("max_pool3d", M | P),
    ("upsample_bilinear2d upsample_nearest2d", A | S),
    ("alpha_dropout", C),
    ("_to_copy to", G),
    ("adaptive_avg_pool3d adaptive_max_pool1d avg_pool3d", P),
)
OPERATORS: dict[str, Fact] = {name: facts for names, facts in _ROWS for name in names.split()}


@cache
def having(fact: Fact) -> frozenset[str]:
    """The operators of which this is true.

    >>> sorted(having(Fact.VIEWS))
    ['_unsafe_view', 'reshape', 'unflatten', 'view']
    """
    return frozenset(name for name, facts in OPERATORS.items() if fact in facts)
