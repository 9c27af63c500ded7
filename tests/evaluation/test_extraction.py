import logging

import pytest
import torch
from torch import nn

from vpt_vision.evaluation.cache import CacheConfig, FeatureCache
from vpt_vision.evaluation.extraction import Extractor
from vpt_vision.evaluation.features import Reading, extract
from vpt_vision.task import Renderer


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(CacheConfig(folder=tmp_path / "features"))


@pytest.fixture
def source(squares):
    """Noise that counts how often it is read and has a fingerprint."""

    class Counted(squares):
        reads = 0
        version = "1"

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

        def fingerprint(self):
            return self.version

    return Counted(6, unreadable={0})


def pooled(backbone, source, cache, **options):
    options = {"renderer": Renderer(), "reading": Reading(4, max_unreadable=0.5), **options}
    renderer = options.pop("renderer")
    return Extractor(backbone, renderer, cache=cache, **options).pooled(source, 16, blocks=2)


def test_a_second_extraction_comes_from_the_cache_and_reads_one_image(backbone, source, cache):
    first = pooled(backbone, source, cache)
    reads = source.reads
    second = pooled(backbone, source, cache)
    assert source.reads == reads + 1
    assert first.images == second.images == 5
    assert first.images_per_second == pytest.approx(5 / first.seconds)
    assert second.images_per_second is None
    expected = extract(backbone, source, Renderer(), 16, blocks=2, reading=Reading(max_unreadable=0.5))
    for name in ("block_cls", "mean_patch", "labels", "index"):
        assert torch.equal(getattr(second.features, name), getattr(first.features, name))
        torch.testing.assert_close(getattr(first.features, name), getattr(expected, name))


def test_whatever_the_features_depend_on_makes_another_entry(backbone, source, cache):
    assert pooled(backbone, source, cache).seconds is not None
    assert pooled(backbone, source, cache, precision="bf16").seconds is not None
    assert pooled(backbone, source, cache, renderer=Renderer(mean=(0.0, 0.0, 0.0))).seconds is not None
    type(source).version = "2"
    assert pooled(backbone, source, cache).seconds is not None
    with torch.no_grad():
        backbone.vit.norm.bias[0] += 1e-3
    assert pooled(backbone, source, cache).seconds is not None
    assert (
        Extractor(backbone, Renderer(), cache=cache, reading=Reading(max_unreadable=1))
        .pooled(source, 20, blocks=2)
        .seconds
    )
    assert pooled(backbone, source, cache).seconds is None
    assert len(list(cache.folder.glob("*.safetensors"))) == 6


def test_code_that_changed_under_the_same_weights_is_noticed(backbone, source, cache, caplog):
    pooled(backbone, source, cache)
    backbone.vit.norm.register_forward_hook(lambda module, inputs, output: output * 1.1)
    found = pooled(backbone, source, cache)
    assert found.seconds is not None
    assert "does not hold what the encoder gives" in caplog.text
    assert pooled(backbone, source, cache).seconds is None  # the entry was written anew


class Sized(nn.Module):
    """Has no weights, so that nothing in its state tells how large its features are."""

    patch_size = 4

    def __init__(self, cls, patches):
        super().__init__()
        self.sizes = cls, patches

    def forward(self, images):
        mean = images.mean((1, 2, 3))[:, None]
        cls, patches = self.sizes
        return mean.expand(-1, cls), mean[:, None].expand(-1, (images.shape[-1] // 4) ** 2, patches)


@pytest.mark.parametrize("sizes", [(6, 3), (5, 4)])
def test_features_of_another_size_are_noticed_where_no_weight_tells(source, cache, caplog, sizes):
    pooled(Sized(5, 3), source, cache)
    found = pooled(Sized(*sizes), source, cache)
    assert found.seconds is not None and "a shape of [" in caplog.text
    assert (found.features.block_cls.shape[-1], found.features.mean_patch.shape[-1]) == sizes
    assert pooled(Sized(*sizes), source, cache).seconds is None


def test_a_damaged_entry_is_extracted_anew(backbone, source, cache, caplog):
    pooled(backbone, source, cache)
    (path,) = cache.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert pooled(backbone, source, cache).seconds is not None
    assert "is damaged" in caplog.text
    assert pooled(backbone, source, cache).seconds is None


def test_without_a_cache_or_a_fingerprint_nothing_is_kept(backbone, source, squares, cache, caplog):
    assert pooled(backbone, source, None).seconds is not None
    with caplog.at_level(logging.INFO):
        assert pooled(backbone, squares(3), cache).seconds is not None
    assert "has no fingerprint" in caplog.text
    assert not list(cache.folder.glob("*.safetensors"))
