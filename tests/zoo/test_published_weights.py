"""The published weights load strictly and recognise photos: preprocessing, padding and key names at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfit import zoo

pytestmark = pytest.mark.weights

# Cut-out photos, by path below the stamps folder, and the ImageNet-1k classes that count as right.
PHOTOS = {
    "animals/amphibians/frog-1.png": [30, 31, 32],
    "animals/birds/peacock.png": [84],
    "animals/fish/lobster.png": [123],
    "animals/mammals/apes/gorilla.png": [366],
    "animals/mammals/cats/tiger_sumatran.png": [292],
    "food/fruit/banana.png": [954],
    "food/fruit/orange.png": [950],
    "food/vegetables/broccoli.png": [937],
    "hobbies/music/string/violin.png": [889],
    "household/dishes/teapot.png": [849],
    "medical/stethoscope.png": [823],
    "vehicles/emergency/firetruck.png": [555],
}


def read(path: Path, size: int = 224, longest: int = 200) -> torch.Tensor:
    """Longest side to 200 pixels, in the middle of a white square: [3, 224, 224], 0..1."""
    photo = Image.open(path).convert("RGBA")
    scale = longest / max(photo.size)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGBA", (size, size), "white")
    square.alpha_composite(photo, ((size - photo.width) // 2, (size - photo.height) // 2))
    return torch.from_numpy(np.array(square.convert("RGB"))).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_published_weights_recognise_photos(name: str, request: pytest.FixtureRequest, stamps: Path) -> None:
    torch.set_num_threads(1)
    architecture = zoo.ARCHITECTURES[name]
    network = zoo.build(name).eval()
    checkpoint = request.getfixturevalue(f"{name}_checkpoint")
    network.load_state_dict(torch.load(checkpoint, weights_only=True), strict=True)

    photos = torch.stack([read(stamps / path) for path in PHOTOS])
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (architecture.mean, architecture.std))
    with torch.no_grad():
        answers = network((photos - mean) / std).argmax(dim=1).tolist()

    wrong = [path for (path, right), answer in zip(PHOTOS.items(), answers, strict=True) if answer not in right]
    assert len(wrong) <= 3, f"not recognised: {wrong}"
