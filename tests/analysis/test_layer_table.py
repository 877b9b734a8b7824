"""The layer table: rows in order, and sums against published figures and against counting by hooks."""

import pytest
import torch
from torch import nn

from pocketfit import zoo
from pocketfit.analysis.layer_table import LayerRow, layer_table, totals
from pocketfit.core.preprocess import Preprocess
from pocketfit.sources.models.open_model import model_from_module


def test_rows_of_a_small_network():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.fc = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Linear(8, 5)

        def forward(self, x):
            x = self.act(self.conv(x))
            return self.fc((x + x).mean((2, 3)))

    rows = layer_table(model_from_module(Net(), preprocess=Preprocess(height=16, width=16)))
    assert rows == [
        LayerRow(
            name="conv",
            type="Conv2d",
            input_shape=(3, 16, 16),
            output_shape=(8, 8, 8),
            params=3 * 8 * 9 + 8,
            macs=8 * 8 * 8 * 27,
            size_bytes=4 * (3 * 8 * 9 + 8),
        ),
        LayerRow(
            name="act", type="ReLU", input_shape=(8, 8, 8), output_shape=(8, 8, 8), params=0, macs=0, size_bytes=0
        ),
        LayerRow(name="add", type="add", input_shape=(8, 8, 8), output_shape=(8, 8, 8), params=0, macs=0, size_bytes=0),
        LayerRow(name="mean", type="mean", input_shape=(8, 8, 8), output_shape=(8,), params=0, macs=0, size_bytes=0),
        LayerRow(name="fc", type="Linear", input_shape=(8,), output_shape=(5,), params=45, macs=40, size_bytes=180),
    ]


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_totals_of_the_zoo_are_the_published_ones(name):
    architecture = zoo.ARCHITECTURES[name]
    total = totals(layer_table(model_from_module(zoo.build(name), preprocess=Preprocess())))
    assert total.params == architecture.published_params
    assert total.size_bytes == 4 * architecture.published_params
    assert abs(total.macs / architecture.published_macs - 1) < 0.005


def test_a_layer_used_twice_is_one_row_with_its_parameters_once_and_its_macs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x):
            return self.conv(self.conv(x)).mean((2, 3))

    rows = layer_table(model_from_module(Twice(), preprocess=Preprocess(height=4, width=4)))
    assert [(row.name, row.params, row.macs) for row in rows] == [("conv", 9, 2 * 9 * 16), ("mean", 0, 0)]


def test_matrix_products_and_transposed_convolutions_cost_too():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False)

        def forward(self, x):
            x = self.up(x).flatten(2)  # [N, 4, 64]
            return torch.matmul(x, x.transpose(1, 2)).flatten(1)

    rows = {
        row.type: row.macs
        for row in layer_table(model_from_module(Products(), preprocess=Preprocess(height=4, width=4)))
    }
    assert rows["ConvTranspose2d"] == 3 * 4 * 4 * 4 * 2 * 2
    assert rows["matmul"] == 4 * 4 * 64
