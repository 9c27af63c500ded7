import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vpt_kernels import PackedImages
from vpt_vision.data.maps import whole_map
from vpt_vision.task import Renderer

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("height", "width", "size"), [(37, 53, 16), (53, 37, 16), (9, 31, 20), (24, 24, 24)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_takes_the_nearest_neighbour(height, width, size, kind):
    values = RNG.integers(0, 256, (height, width)).astype(kind)
    side = min(height, width)
    rows, columns = (
        np.floor((length - side) / 2 + (np.arange(size) + 0.5) * side / size).astype(int)
        for length in (height, width)
    )
    seen = whole_map(torch.from_numpy(values), size)
    assert seen.dtype == torch.from_numpy(values).dtype
    assert np.array_equal(seen, values[rows][:, columns])


@given(st.integers(1, 60), st.integers(1, 60), st.integers(5, 30))
def test_lies_under_the_image(height, width, size):
    """A map that is a plane, drawn as an image too, shows the same values in both."""
    y, x = np.mgrid[:height, :width]
    plane = torch.from_numpy((y * 2 + x).astype(np.uint8))
    image = PackedImages.pack([plane[..., None].repeat(1, 1, 3)])
    seen = Renderer((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear").whole(image, size)[0, 0] * 255
    step = max(min(height, width) / size, 1)  # the image mixes pixels where the map picks one
    assert (seen - whole_map(plane, size).float()).abs().max() <= 2 * step
