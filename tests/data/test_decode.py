import io

import numpy as np
import pytest
import torch
from PIL import Image

from vpt_kernels import PackedImages
from vpt_vision.data.decode import decode
from vpt_vision.data.source import UnreadableSample
from vpt_vision.task import Renderer

RNG = np.random.default_rng(0)
# What a viewer does to the stored pixels, by EXIF orientation: EXIF 2.32, tag 274, in numpy's words.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


def encode(pixels, kind="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 5 + 1), np.cos(y / 7), np.sin((x + y) / 9)]
    return np.stack([(wave * 100 + 128).astype(np.uint8) for wave in waves], -1)


class TestModes:
    """Every mode becomes RGB uint8 with the colours a person would see."""

    pixels = RNG.integers(0, 256, (16, 16, 3), np.uint8)

    def check(self, data, expected, tolerance=0):
        image = decode("x", data).image
        assert image.shape == (16, 16, 3) and image.dtype == torch.uint8 and image.is_contiguous()
        got = image.numpy().astype(int)
        assert np.abs(got - expected).max() <= tolerance

    @pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
    def test_rgb(self, kind, options):
        self.check(encode(self.pixels, kind, **options), self.pixels)

    def test_grey(self):
        grey = self.pixels[..., 0]
        self.check(encode(grey), np.repeat(grey[..., None], 3, -1))

    def test_grey_with_alpha(self):
        self.check(
            encode(Image.fromarray(self.pixels[..., :2], "LA")), np.repeat(self.pixels[..., :1], 3, -1)
        )

    def test_bilevel(self):
        bits = self.pixels[..., 0] > 127
        self.check(encode(bits), np.repeat(bits[..., None] * 255, 3, -1))

    def test_sixteen_bits_keep_the_upper_eight(self):
        deep = RNG.integers(0, 2**16, (16, 16), np.uint16)
        self.check(encode(deep), np.repeat(deep[..., None] // 256, 3, -1))

    def test_alpha_is_dropped(self):
        rgba = np.concatenate([self.pixels, RNG.integers(0, 256, (16, 16, 1), np.uint8)], -1)
        self.check(encode(rgba), self.pixels)

    @pytest.mark.parametrize("transparent", [{}, {"transparency": 3}, {"transparency": bytes(range(256))}])
    def test_palette(self, transparent):
        numbers = RNG.integers(0, 256, (16, 16), np.uint8)
        palette = RNG.integers(0, 256, (256, 3), np.uint8)
        image = Image.fromarray(numbers, "L")
        image.putpalette(palette.tobytes())
        assert image.mode == "P"
        self.check(encode(image, **transparent), palette[numbers])

    def test_cmyk(self):
        flat = np.full((16, 16, 4), (0, 255, 128, 0), np.uint8)  # no cyan, all magenta, half yellow
        self.check(encode(Image.fromarray(flat, "CMYK"), "JPEG", quality=100), np.array([255, 0, 127]), 3)

    def test_jpeg(self):
        pixels = smooth(16, 16)
        self.check(encode(pixels, "JPEG", quality=100, subsampling=0), pixels, 6)


class TestGeometry:
    @pytest.mark.parametrize(("height", "width"), [(24, 40), (31, 17), (1, 9)])
    def test_keeps_its_own_size(self, height, width):
        pixels = smooth(height, width)
        for at_least in (None, 1, 500):
            assert np.array_equal(decode("x", encode(pixels), at_least=at_least).image, pixels)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_exif_orientation(self, orientation, kind):
        pixels = smooth(24, 40)
        exif = Image.Exif()
        exif[274] = orientation
        options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[kind]
        segmentation = RNG.integers(0, 256, (24, 40), np.uint8)
        depth = RNG.integers(0, 2**16, (24, 40), np.uint16)
        decoded = decode("x", encode(pixels, kind, exif=exif, **options), encode(segmentation), encode(depth))
        upright = UPRIGHT[orientation]
        difference = np.abs(decoded.image.numpy().astype(int) - upright(pixels))
        assert difference.max() <= (6 if kind == "JPEG" else 0)
        assert np.array_equal(decoded.segmentation, upright(segmentation))
        assert decoded.segmentation.dtype == torch.uint8 and decoded.depth.dtype == torch.float32
        assert np.allclose(decoded.depth, upright(depth) / 1000)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize(("height", "width"), [(336, 504), (504, 328), (168, 168), (80, 88)])
    def test_a_scaled_jpeg_keeps_its_place(self, height, width, orientation):
        """At 1/8, 1/4, 1/2: a view shows the same as of the picture in a PNG, which is never scaled."""
        y, x = np.mgrid[:height, :width] * 4 * np.pi / min(height, width)
        pixels = np.stack([(wave * 120 + 128).astype(np.uint8) for wave in (np.sin(x), np.sin(y))] * 2, -1)
        pixels = np.ascontiguousarray(pixels[..., :3])
        exif = Image.Exif()
        exif[274] = orientation
        jpeg = encode(pixels, "JPEG", exif=exif, quality=100, subsampling=0)
        segmentation = encode(pixels[..., 0])
        scaled = decode("x", jpeg, segmentation, at_least=40)
        plain = decode("x", encode(pixels, exif=exif), segmentation, at_least=40)
        assert 40 <= min(scaled.image.shape[:2]) < 80 <= min(plain.image.shape[:2])
        renderer = Renderer((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        views = [renderer.whole(PackedImages.pack([one.image]), 20) for one in (scaled, plain)]
        assert (views[0] - views[1]).abs().max() <= 10 / 255
        assert torch.equal(scaled.segmentation, plain.segmentation)

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_unknown_orientation_changes_nothing(self, orientation):
        exif = Image.Exif()
        exif[274] = orientation
        pixels = smooth(8, 8)
        assert np.array_equal(decode("x", encode(pixels, exif=exif)).image, pixels)

    def test_broken_exif_does_not_lose_the_image(self):
        pixels = smooth(8, 8)
        assert np.array_equal(decode("x", encode(pixels, exif=b"Exif\0\0MM\0*garbage")).image, pixels)

    def test_palette_map_gives_class_numbers(self):
        numbers = RNG.integers(0, 12, (8, 8), np.uint8)
        image = Image.fromarray(numbers, "L")
        image.putpalette(RNG.integers(0, 256, 36, np.uint8).tobytes())
        assert np.array_equal(decode("x", encode(smooth(8, 8)), encode(image)).segmentation, numbers)


class TestUnreadable:
    def fails(self, match, *data):  # match: a pattern, None for any reason
        with pytest.raises(UnreadableSample, match=match) as caught:
            decode("folder/x.jpg", *data)
        assert caught.value.name == "folder/x.jpg"
        assert "0x" not in caught.value.reason and "\n" not in caught.value.reason

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.8])
    def test_cut_off(self, kind, share):
        whole = encode(RNG.integers(0, 256, (64, 64, 3), np.uint8), kind)
        self.fails(None, whole[: int(len(whole) * share)])

    def test_noise(self):
        self.fails("not a JPEG, PNG or WebP image", RNG.bytes(500))

    def test_other_formats_are_not_tried(self):
        self.fails("not a JPEG, PNG or WebP image", encode(smooth(8, 8), "TIFF"))

    def test_decompression_bomb(self):
        side = int((Image.MAX_IMAGE_PIXELS * 1.1) ** 0.5)  # Pillow itself only warns of this size
        self.fails("decompression bomb", encode(Image.new("1", (side, side))))

    @pytest.mark.parametrize(
        ("segmentation", "match"),
        [
            (encode(smooth(8, 8)), "segmentation map is a PNG of mode RGB"),
            (encode(smooth(8, 8)[..., 0], "JPEG"), "segmentation map is a JPEG"),
            (encode(smooth(8, 9)[..., 0]), "9×8, the image 8×8"),
            (b"nothing", "segmentation map: not a"),
            (encode(RNG.integers(0, 256, (8, 8), np.uint8))[:-40], "segmentation map"),
        ],
    )
    def test_bad_segmentation(self, segmentation, match):
        self.fails(match, encode(smooth(8, 8)), segmentation)

    def test_bad_depth(self):
        self.fails("depth map is a PNG of mode L", encode(smooth(8, 8)), None, encode(smooth(8, 8)[..., 0]))


class TestDepthInMetres:
    def npy(self, array, **options):
        file = io.BytesIO()
        np.save(file, array, **options)
        return file.getvalue()

    @pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
    def test_is_read_as_it_is(self, kind):
        metres = RNG.uniform(0, 80, (24, 40)).astype(kind)
        metres[3, 20:22] = np.nan, np.inf
        exif = Image.Exif()
        exif[274] = 6
        depth = decode("x", encode(smooth(24, 40), exif=exif), None, self.npy(metres)).depth
        metres[3, 20:22] = 0
        assert depth.dtype == torch.float32
        assert np.array_equal(depth, UPRIGHT[6](metres).astype(np.float32))

    @pytest.mark.parametrize(
        ("array", "match"),
        [
            (np.ones((8, 8), np.int32), r"an array \[8, 8\] of int32"),
            (
                np.ones((8, 9)),
                r"an array \[8, 9\] of float64, not a floating-point one of the image's \[8, 8\]",
            ),
            (np.ones((8, 8, 1)), r"an array \[8, 8, 1\]"),
        ],
    )
    def test_other_arrays_are_refused(self, array, match):
        with pytest.raises(UnreadableSample, match=match):
            decode("x", encode(smooth(8, 8)), None, self.npy(array))

    def test_no_pickle_is_read(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return (tmp_path.joinpath("was run").touch, ())

        with pytest.raises(UnreadableSample, match="allow_pickle=False"):
            decode("x", encode(smooth(8, 8)), None, self.npy(np.array([[Hostile()]]), allow_pickle=True))
        assert not list(tmp_path.iterdir())

    def test_cut_off(self):
        with pytest.raises(UnreadableSample, match="its depth map: "):
            decode("x", encode(smooth(8, 8)), None, self.npy(np.ones((8, 8)))[:-9])
