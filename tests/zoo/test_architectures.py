"""The networks against the figures that were published for them, and against what later steps ask of them."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from pocketfit import zoo
from pocketfit.zoo.blocks import SqueezeExcitation, make_divisible
from pocketfit.zoo.efficientnet_lite import SamePad
from pocketfit.zoo.shufflenet_v2 import channel_shuffle, channels_of_stages

NAMES = sorted(zoo.ARCHITECTURES)


@dataclass(frozen=True)
class Golden:
    """What this network counts to: a change of any figure is a change of the network."""

    params: int
    macs: int  # convolutions and linear layers, one image of 224 x 224
    macs_off_published: float  # fraction
    entries: int  # of the state dict, num_batches_tracked included
    head: str
    keys: tuple[str, ...]


GOLDEN = {
    "mobilenet_v1": Golden(
        4_231_976, 568_740_352, 0.02, 164, "classifier.1", ("features.0.0.weight", "features.13.1.1.running_var")
    ),
    "mobilenet_v2": Golden(
        3_504_872,
        300_774_272,
        0.02,
        314,
        "classifier.1",
        ("features.0.0.weight", "features.1.conv.0.0.weight", "features.17.conv.3.running_var", "features.18.1.bias"),
    ),
    "mobilenet_v3_small": Golden(
        2_542_856,
        56_510_400,
        0.02,
        244,
        "classifier.3",
        ("features.1.block.1.fc1.weight", "features.1.block.1.fc2.bias", "features.12.1.bias", "classifier.0.weight"),
    ),
    "mobilenet_v3_large": Golden(
        5_483_032,
        216_589_760,
        0.02,
        312,
        "classifier.3",
        ("features.4.block.2.fc1.weight", "features.1.block.0.0.weight", "features.16.0.weight", "classifier.0.bias"),
    ),
    # The 407 M that TensorFlow's README states are not convolutions and linear layers alone; their sum is
    # fixed by the published weights' shapes, which load strictly.
    "efficientnet_lite0": Golden(
        4_652_008,
        385_187_552,
        0.06,
        296,
        "_fc",
        ("_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_blocks.15._bn2.running_mean", "_conv_head.weight"),
    ),
    "shufflenet_v2": Golden(
        2_278_604,
        144_907_992,
        0.02,
        338,
        "fc",
        ("conv1.0.weight", "stage2.0.branch1.2.weight", "stage3.7.branch2.6.running_var", "conv5.1.bias"),
    ),
    "resnet18": Golden(
        11_689_512, 1_814_073_344, 0.02, 122, "fc", ("conv1.weight", "layer2.0.downsample.1.bias", "layer4.1.bn2.bias")
    ),
    "resnet50": Golden(
        25_557_032, 4_089_184_256, 0.02, 320, "fc", ("bn1.bias", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias")
    ),
}


@pytest.fixture(autouse=True)
def _one_thread_fixed_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {name: zoo.build(name).eval() for name in NAMES}


def count_macs(network: nn.Module, images: torch.Tensor) -> int:
    total = 0

    def add(layer: nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()  # one multiply-accumulate per weight of an output

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return total


def test_every_architecture_has_golden_figures() -> None:
    assert sorted(GOLDEN) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_published_one(name: str, networks: dict[str, nn.Module]) -> None:
    count = sum(p.numel() for p in networks[name].parameters())
    assert count == GOLDEN[name].params == zoo.ARCHITECTURES[name].published_params


@pytest.mark.parametrize("name", NAMES)
def test_macs_are_the_published_ones(name: str, networks: dict[str, nn.Module]) -> None:
    architecture, golden = zoo.ARCHITECTURES[name], GOLDEN[name]
    macs = count_macs(networks[name], torch.zeros(1, 3, architecture.image_size, architecture.image_size))
    assert macs == golden.macs
    assert macs == pytest.approx(architecture.published_macs, rel=golden.macs_off_published)


@pytest.mark.parametrize("name", NAMES)
def test_key_names_are_the_published_checkpoints(name: str, networks: dict[str, nn.Module]) -> None:
    state = networks[name].state_dict()
    golden = GOLDEN[name]
    assert len(state) == golden.entries
    assert not {*golden.keys, f"{golden.head}.weight"} - state.keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 33, 47), (3, 3, 64, 96)])
def test_any_batch_and_resolution(name: str, shape: tuple[int, ...], networks: dict[str, nn.Module]) -> None:
    images = torch.rand(shape)
    before = images.clone()
    with torch.no_grad():
        logits = networks[name](images)
    assert logits.shape == (shape[0], 1000)
    assert torch.isfinite(logits).all()
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_mix(name: str, networks: dict[str, nn.Module]) -> None:
    images = torch.rand(3, 3, 48, 48)
    with torch.no_grad():
        together = networks[name](images)
        alone = torch.cat([networks[name](image[None]) for image in images])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [0.35, 0.75, 1.25])
def test_width_multiplier(name: str, width: float) -> None:
    with torch.device("meta"):
        network, full = zoo.build(name, width=width, classes=8), zoo.build(name, classes=8)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions if m.out_channels % 8] == []
    params, full_params = (sum(p.numel() for p in n.parameters()) for n in (network, full))
    assert params < full_params if width < 1 else params > full_params


@pytest.mark.parametrize("name", NAMES)
def test_narrow_networks_run_and_train(name: str) -> None:
    network = zoo.build(name, width=0.35, classes=5)
    loss = network(torch.rand(2, 3, 64, 64)).square().sum()
    loss.backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_head_is_the_last_linear_layer(name: str) -> None:
    with torch.device("meta"):
        network = zoo.build(name, classes=7)
    key, layer = zoo.head(network)
    assert key == GOLDEN[name].head
    assert layer is network.get_submodule(key)
    assert layer.out_features == 7


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_separate_modules_that_work_out_of_place(name: str, networks: dict[str, nn.Module]) -> None:
    used: list[nn.Module] = []
    kinds = nn.ReLU | nn.ReLU6 | nn.Hardswish | nn.Hardsigmoid
    activations = [m for m in networks[name].modules() if isinstance(m, kinds)]
    hooks = [m.register_forward_hook(lambda m, _, __: used.append(m)) for m in activations]
    with torch.no_grad():
        networks[name](torch.rand(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert len(used) == len(set(used)) == len(activations)
    assert not any(getattr(m, "inplace", False) for m in activations)


@pytest.mark.parametrize("name", NAMES)
def test_exports_with_a_dynamic_batch(name: str) -> None:
    network = zoo.build(name, width=0.35, classes=10).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(network, (torch.rand(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    images = torch.rand(5, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images), network(images))


@pytest.mark.parametrize("name", NAMES)
def test_physically_narrower_layers_still_run(name: str) -> None:
    """All layers swapped for narrower ones, as pruning does: no channel count may be fixed in forward."""
    # Pairs of widths between which the same blocks are residual.
    wide, less = {"efficientnet_lite0": (1.0, 0.5), "shufflenet_v2": (2.0, 0.75)}.get(name, (2.0, 1.0))
    network, narrow = (zoo.build(name, width=width, classes=4).eval() for width in (wide, less))
    for key, layer in narrow.named_modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            parent, _, child = key.rpartition(".")
            setattr(network.get_submodule(parent), child, layer)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), narrow(images))


def test_importing_the_zoo_does_not_import_torch() -> None:
    code = "import sys; from pocketfit import zoo; assert zoo.ARCHITECTURES; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_refusals_are_sentences() -> None:
    with pytest.raises(ValueError, match=r"No architecture is called 'vgg'. Known ones: .*mobilenet_v2.*resnet50"):
        zoo.build("vgg")
    with pytest.raises(ValueError, match=r"width multiplier must be above 0, not -1"):
        zoo.build("resnet18", width=-1)
    with pytest.raises(ValueError, match=r"at least 1 class, not 0"):
        zoo.build("resnet18", classes=0)
    with pytest.raises(ValueError, match=r"Sequential has no linear layer"):
        zoo.head(nn.Sequential(nn.Conv2d(3, 8, 1)))


def test_make_divisible_never_loses_more_than_a_tenth() -> None:
    assert [make_divisible(c) for c in (3, 8, 11, 12, 18.9, 20, 1024)] == [8, 8, 16, 16, 24, 24, 1024]
    assert all(make_divisible(c) >= 0.9 * c and make_divisible(c) % 8 == 0 for c in range(1, 400))


def test_channel_shuffle_interleaves_the_halves() -> None:
    channels = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert channel_shuffle(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_shufflenet_widths() -> None:
    assert channels_of_stages(1.0) == (116, 232, 464, 1024)
    assert channels_of_stages(0.5) == (48, 96, 192, 1024)
    assert channels_of_stages(0.75) == (80, 176, 352, 1024)


@pytest.mark.parametrize(
    ("kernel", "size", "zeros"),
    [(3, 224, (0, 1)), (3, 225, (1, 1)), (5, 224, (1, 2)), (5, 225, (2, 2)), (3, 1, (1, 1)), (5, 2, (1, 2))],
)
def test_same_padding_is_tensorflows(kernel: int, size: int, zeros: tuple[int, int]) -> None:
    padded = SamePad(kernel, 2)(torch.ones(1, 1, size, 8))
    column = padded[0, 0, :, 4]
    assert column.tolist() == [0.0] * zeros[0] + [1.0] * size + [0.0] * zeros[1]
    assert (padded.shape[2] - kernel) // 2 + 1 == -(-size // 2)


def test_squeeze_excitation_by_hand() -> None:
    """Mean 2, fc1 = 1, fc2 = 1.5: hard sigmoid of 3 is 1; with fc2 = 0 it is one half."""
    block = SqueezeExcitation(1, 1)
    for layer, weight in ((block.fc1, 1.0), (block.fc2, 1.5)):
        nn.init.constant_(layer.weight, weight)
        nn.init.zeros_(layer.bias)
    x = torch.tensor([[[[1.0, 3.0]]]])
    torch.testing.assert_close(block(x), x)
    nn.init.zeros_(block.fc2.weight)
    torch.testing.assert_close(block(x), x / 2)
