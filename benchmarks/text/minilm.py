"""MiniLM (a BERT of six layers) with the published names of weights, and a classifier on the mean of its tokens.

Wang et al. 2020; the sizes are those of all-MiniLM-L6-v2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, WIDE = 384, 12, 6, 1536
WORDS, PLACES, TYPES = 30_522, 512, 2
FAR = -1e4  # added to the scores of padding


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH, 1e-12)})

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        def heads(name: str) -> Tensor:
            found: Tensor = self.self[name](x)
            return found.unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2)  # [n, heads, tokens, 32]

        scores = heads("query") @ heads("key").transpose(2, 3) * (WIDTH // HEADS) ** -0.5
        mixed = (scores + bias).softmax(-1) @ heads("value")
        found: Tensor = self.output["LayerNorm"](x + self.output["dense"](mixed.transpose(1, 2).flatten(2)))
        return found


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDE)})
        self.output = nn.ModuleDict({"dense": nn.Linear(WIDE, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH, 1e-12)})

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attention(x, bias)
        wide = nn.functional.gelu(self.intermediate["dense"](x))
        found: Tensor = self.output["LayerNorm"](x + self.output["dense"](wide))
        return found


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH)
        self.position_embeddings = nn.Embedding(PLACES, WIDTH)
        self.token_type_embeddings = nn.Embedding(TYPES, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, 1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings.weight[: ids.shape[1]]
        found: Tensor = self.LayerNorm(self.word_embeddings(ids) + places + self.token_type_embeddings.weight[0])
        return found


class MiniLM(nn.Module):
    """input_ids, attention_mask int64 [n, tokens] -> [n, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([Layer() for _ in range(LAYERS)])})
        self.classifier = nn.Linear(WIDTH, classes)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mean over the tokens that are no padding: [n, 384]."""
        x, kept = self.embeddings(input_ids), attention_mask.to(torch.float32)
        bias = (1.0 - kept)[:, None, None] * FAR
        for layer in self.encoder["layer"]:  # type: ignore[union-attr]  # a ModuleList
            x = layer(x, bias)
        return (x * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = self.classifier(self.features(input_ids, attention_mask))
        return found
