"""Networks that take token ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.brought.parts import CLASSES


class BagOfTokens(nn.Module):
    """The mean of the tokens' vectors, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.fc = nn.Embedding(40, 16), nn.Linear(16, 32), nn.Linear(32, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.fc(F.relu(self.hidden(self.table(ids).mean(1))))
        return found


class TokenEncoder(nn.Module):
    """A layer of a transformer, and the mean of what is not padding."""

    def __init__(self, steps: bool = False) -> None:
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(40, 16), nn.Embedding(12, 16), nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.wide, self.narrow, self.last = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)
        self.fc, self.steps = nn.Linear(16, CLASSES), steps

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.norm(self.words(input_ids) + self.places(torch.arange(input_ids.shape[1])))
        bias = (1.0 - attention_mask[:, None].to(x.dtype)) * -1e4
        shares = (self.query(x) @ self.key(x).transpose(1, 2) / 4 + bias).softmax(-1)
        x = x + self.out(shares @ self.value(x))
        x = self.last(x + self.narrow(F.gelu(self.wide(x))))
        if self.steps:
            return self.fc(x)
        kept = attention_mask[:, :, None].to(x.dtype)
        return self.fc((x * kept).sum(1) / kept.sum(1).clamp(min=1))
