"""Attention, mixing over places, and recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.brought.parts import CLASSES, cbr


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.fc = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, CLASSES)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.fc((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned places, attention written out (one linear layer for all three)."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.heads, self.patch = heads, nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.norms1, self.norms2 = (nn.ModuleList(nn.LayerNorm(width) for _ in range(depth)) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.proj = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        for norm1, qkv, proj, norm2, mlp in zip(self.norms1, self.qkv, self.proj, self.norms2, self.mlps, strict=True):
            n, length, width = x.shape
            q, k, v = qkv(norm1(x)).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
            x = x + proj((weights @ v).transpose(1, 2).reshape(n, length, width))
            x = x + mlp(norm2(x))
        return self.head(self.norm(x)[:, 0])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=False)
        self.embed, self.encoder = nn.Linear(8, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(x)).mean(1))


class Mixer(nn.Module):
    """MLP-Mixer: linear layers over places and over channels in turns."""

    def __init__(self, width: int = 32, places: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.norms1, self.norms2 = (nn.ModuleList(nn.LayerNorm(width) for _ in range(2)) for _ in range(2))
        self.over_places = nn.ModuleList(self.mlp(places) for _ in range(2))
        self.over_channels = nn.ModuleList(self.mlp(width) for _ in range(2))
        self.fc = nn.Linear(width, CLASSES)

    @staticmethod
    def mlp(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for norm1, places, norm2, channels in zip(
            self.norms1, self.over_places, self.norms2, self.over_channels, strict=True
        ):
            x = x + places(norm1(x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(norm2(x))
        return self.fc(x.mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: object) -> None:
        super().__init__()
        self.recurrent = kind(8, 24, batch_first=True, **settings)
        self.fc = nn.Linear(48 if settings.get("bidirectional") else 24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.recurrent(x)[0][:, -1])


class ConvolutionsThenRecurrence(nn.Module):
    """As for text lines: columns of the feature map are steps of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(cbr(1, 16, stride=2), cbr(16, 32, stride=2))
        self.recurrent, self.fc = nn.LSTM(32 * 4, 24, batch_first=True), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.permute(0, 3, 1, 2).flatten(2)
        return self.fc(self.recurrent(x)[0].mean(1))
