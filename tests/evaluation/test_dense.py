import pytest
import torch
import torchvision.transforms.v2.functional as T

from vpt_vision.data.source import Sample
from vpt_vision.errors import UserError
from vpt_vision.evaluation.cache import CacheConfig, FeatureCache
from vpt_vision.evaluation.dense import DenseConfig, extract_dense
from vpt_vision.evaluation.extraction import Extractor
from vpt_vision.evaluation.features import Reading
from vpt_vision.task import Renderer

SIZES = [(16, 16), (32, 48), (40, 16)]


class Maps:
    """Noise of several shapes, with maps of twice the images' size."""

    classes = None

    def __init__(self, kind="segmentation"):
        self.kind = kind

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        height, width = SIZES[index]
        noise = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=noise)
        classes = torch.randint(0, 5, (2 * height, 2 * width), dtype=torch.uint8, generator=noise)
        if self.kind == "segmentation":
            return Sample(image, index, segmentation=classes)
        return Sample(image, index, depth=classes.float() + 0.5)

    def name(self, index):
        return f"image {index}"

    def fingerprint(self):
        return self.kind


def extract(backbone, kind="segmentation", **options):
    options = {"stride": 8, "batch_size": 2, "reading": Reading(2), **options}
    return extract_dense(backbone, Maps(kind), Renderer(), 16, kind=kind, **options)


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_windows_see_what_a_resize_and_a_crop_would_show(backbone, kind):
    found = extract(backbone, kind)
    assert found.owner.tolist() == [0] + 2 * [1] + 4 * [2]
    assert found.frames.tolist() == [[16, 16], [16, 24], [40, 16]]
    assert found.patches.shape == (7, 16, 24)
    renderer = Renderer()
    for image, (height, width) in enumerate(SIZES):
        sample = Maps(kind)[image]
        map_ = sample.segmentation if kind == "segmentation" else sample.depth
        assert torch.equal(found.map(image), map_)
        frame = T.resize(
            sample.image.permute(2, 0, 1).double() / 255,
            list(found.frame(image)),
            interpolation=T.InterpolationMode.BICUBIC,
            antialias=True,
        )
        frame = T.normalize(frame, renderer.mean, renderer.std).float()
        for window in range(found.windows(image).start, found.windows(image).stop):
            top, left = found.places[window].tolist()
            crop = frame[None, :, top : top + 16, left : left + 16]
            with torch.no_grad():
                cls, patches = backbone.eval()(crop)
            # a window is cut from the source, not from the frame: its border knows of no pixel outside
            tolerance = 0.02 if (height, width) == tuple(found.frame(image)) else 0.3
            assert (found.patches[window].float() - patches[0]).norm() / patches.norm() < tolerance
            assert (found.cls[window].float() - cls[0]).norm() / cls.norm() < tolerance


def test_batches_and_workers_change_nothing(backbone):
    first, second = extract(backbone), extract(backbone, batch_size=5, reading=Reading(3, workers=1))
    assert torch.equal(first.map_values, second.map_values)
    torch.testing.assert_close(first.patches, second.patches, atol=2e-3, rtol=1e-3)


def test_dense_features_go_through_the_cache(backbone, tmp_path):
    cache = FeatureCache(CacheConfig(folder=tmp_path))
    extractor = Extractor(backbone, Renderer(), cache=cache)

    def dense(kind="segmentation", stride=8):
        return extractor.dense(Maps(kind), 16, kind=kind, stride=stride, batch_size=4)

    first, second = dense(), dense()
    assert first.seconds is not None and second.seconds is None
    assert first.images == second.images == 3
    for image in range(3):
        assert torch.equal(first.features.map(image), second.features.map(image))
    assert torch.equal(first.features.patches, second.features.patches)
    assert dense(stride=4).seconds is not None and dense("depth").seconds is not None


def test_an_image_without_its_map_is_told(backbone):
    with pytest.raises(UserError, match=r"Image 0 of the source has no depth map, .* 'evaluation.depth'"):
        extract_dense(backbone, Maps(), Renderer(), 16, kind="depth", stride=8, batch_size=2)


def test_the_window_is_the_other_probes_view_in_whole_patches_up_to_512_unless_set(backbone):
    assert [DenseConfig().window(backbone, view) for view in (24, 40, 512, 800)] == [24, 40, 512, 512]
    assert DenseConfig(image_size=36).window(backbone, 24) == 36
    assert DenseConfig(image_size=1024).window(backbone, 24) == 1024
    backbone.patch_size = 14
    assert [DenseConfig().window(backbone, view) for view in (8, 40, 800)] == [14, 28, 504]
    with pytest.raises(UserError, match=r"512 pixels is not a whole number .* multiple of 14"):
        DenseConfig(image_size=512).window(backbone, 24)
