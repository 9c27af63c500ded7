import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vpt_vision.data.image import decode_image, open_image, read_pixels
from vpt_vision.data.source import UnreadableSample

HEIGHT, WIDTH = 37, 53  # odd and unlike: neither blocks of 8 nor chroma of half the size fit
y, x = np.mgrid[:HEIGHT, :WIDTH]
SMOOTH = np.stack([np.sin(x / 5 + 1), np.cos(y / 7), np.sin((x + y) / 9), np.cos(x / 11)], -1)
SMOOTH = (SMOOTH * 100 + 128).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
JPEGS = {"JPEG": {}, "progressive JPEG": {"progressive": True}}


def picture(mode: str, pixels=NOISE) -> Image.Image:
    if mode == "1":
        return Image.fromarray(pixels[..., 0] > 127)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + pixels[..., 1])
    if mode == "P":
        image = Image.fromarray(pixels[..., 0], "L")
        image.putpalette(np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8).tobytes())
        return image
    planes = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(
        pixels[..., 0] if planes == 1 else np.ascontiguousarray(pixels[..., :planes]), mode
    )


def encode(image, kind="PNG", orientation=None, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][274] = orientation
    file = io.BytesIO()
    image.save(file, kind.split()[-1], **{**JPEGS.get(kind, {}), **options})
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "I;16":
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, -1)
    return np.asarray(image.convert("RGB"))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(header: tuple[int, int, int, int], rows: bytes) -> bytes:
    """Write a PNG by hand: width, height, bits, colour type."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def with_size(data: bytes, height: int, width: int) -> bytes:
    """Write another size into a JPEG's frame header."""
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def box(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Average blocks; as in a JPEG, what misses from blocks of 8 repeats the edge."""
    height, width = pixels.shape[:2]
    whole = np.pad(pixels.astype(float), ((0, -height % 8), (0, -width % 8), (0, 0)), "edge")
    blocks = whole.reshape(whole.shape[0] // scale, scale, whole.shape[1] // scale, scale, -1)
    return blocks.mean((1, 3))[: -(-height // scale), : -(-width // scale)]


def off(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return np.abs(found.astype(float) - expected).max()


class TestModes:
    """Every mode of every format, in every orientation, is what Pillow makes of it."""

    @pytest.mark.parametrize("orientation", [None, *range(1, 9)])
    @pytest.mark.parametrize(
        ("kind", "mode", "options"),
        [
            *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
            ("PNG", "P", {"transparency": 3}),
            ("PNG", "P", {"transparency": bytes(range(256))}),
            ("PNG", "RGB", {"transparency": (1, 2, 3)}),
            *[(kind, mode, {}) for kind in JPEGS for mode in ("L", "RGB", "CMYK")],
            *[("JPEG", "RGB", {"subsampling": subsampling}) for subsampling in ("4:4:4", "4:2:2", "4:1:1")],
            ("JPEG", "RGB", {"keep_rgb": True}),
            *[("WEBP", mode, {"lossless": lossless}) for mode in ("L", "RGB", "RGBA") for lossless in (0, 1)],
        ],
    )
    def test_are_as_pillow_reads_them(self, kind, mode, options, orientation):
        data = encode(picture(mode), kind, orientation, **options)
        found = decode_image("x", data)
        turned = orientation in (5, 6, 7, 8)
        assert found.shape == ((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3))
        assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
        # Two releases of one JPEG library need not round alike.
        assert off(found, by_pillow(data)) <= (3 if kind.endswith("JPEG") else 0)

    @pytest.mark.parametrize(("colours", "planes"), [(0, 1), (2, 3), (4, 2), (6, 4)])
    def test_of_sixteen_bits_the_upper_eight_stay(self, colours, planes):
        deep = np.random.default_rng(2).integers(0, 2**16, (5, 7, planes)).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in deep)
        upper = (deep >> 8)[..., : 1 if planes < 3 else 3]
        found = decode_image("x", png((7, 5, 16, colours), rows))
        assert np.array_equal(found, np.broadcast_to(upper, (5, 7, 3)))

    def test_the_first_of_several_pictures_counts(self):
        image = picture("RGB", SMOOTH)
        data = encode(image, "MPO", save_all=True, append_images=[picture("RGB")])
        assert Image.open(io.BytesIO(data)).format == "MPO"
        assert off(decode_image("x", data), by_pillow(data)) <= 3

    @pytest.mark.parametrize("at_least", [None, 5])
    def test_scan_headers_of_some_phones(self, at_least):
        """They write 0 for the last coefficient of a baseline scan: libjpeg-turbo only warns."""
        data = encode(picture("RGB", SMOOTH), "JPEG", orientation=6)
        scan = data.rindex(b"\xff\xda")
        last = scan + 2 + struct.unpack(">H", data[scan + 2 : scan + 4])[0] - 2
        assert data[last] == 63
        odd = data[:last] + b"\0" + data[last + 1 :]
        assert off(decode_image("x", odd, at_least), decode_image("x", data, at_least)) <= 3
        with pytest.raises(UnreadableSample):
            decode_image("x", odd[: len(odd) * 3 // 4], at_least)

    def test_unusual_sampling_of_chroma(self):
        """Three columns of luma for one of chroma, one flat grey block each."""
        data = encode(np.full((8, 24, 3), 128, np.uint8), "JPEG", subsampling="4:4:4")
        frame, scan = data.index(b"\xff\xc0"), data.rindex(b"\xff\xda")
        assert data[frame + 11] == 0x11
        start = scan + 2 + struct.unpack(">H", data[scan + 2 : scan + 4])[0]
        # The standard tables: DC 0 and end of block are 00 1010 in luma, 00 00 in chroma; ones fill up.
        bits = "001010" * 3 + "0000" * 2 + "111111"
        body = int(bits, 2).to_bytes(4, "big")
        odd = data[: frame + 11] + b"\x31" + data[frame + 12 : start] + body + b"\xff\xd9"
        assert (decode_image("x", odd) == 128).all()


class TestOrientationHides:
    """Where a JPEG may tell its orientation, and it is not at the front in plain sight."""

    TURNED = encode(picture("RGB"), "JPEG", orientation=6, quality=95)
    PLAIN = encode(picture("RGB"), "JPEG", quality=95)

    @staticmethod
    def segments(data: bytes) -> tuple[list[bytes], bytes]:
        """The segments between SOI and the scan, and the rest from the scan on."""
        place, found = 2, []
        while data[place + 1] != 0xDA:
            end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            found.append(data[place:end])
            place = end
        return found, data[place:]

    def test_behind_everything_else(self):
        found, scan = self.segments(self.TURNED)
        (exif,) = (segment for segment in found if segment[1] == 0xE1)
        others = [segment for segment in found if segment is not exif]
        for position in range(len(others) + 1):
            data = b"\xff\xd8" + b"".join([*others[:position], exif, *others[position:]]) + scan
            assert off(decode_image("x", data), by_pillow(data)) <= 3
            assert decode_image("x", data).shape[:2] == NOISE.shape[1::-1]

    @pytest.mark.parametrize("fill", [1, 2, 3, 7])
    def test_behind_fill_bytes(self, fill):
        found, scan = self.segments(self.TURNED)
        data = b"\xff\xd8" + b"".join(b"\xff" * fill + segment for segment in found) + scan
        assert off(decode_image("x", data), by_pillow(data)) <= 3

    def test_in_xmp(self):
        packet = (
            b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
            b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
            b"</rdf:RDF></x:xmpmeta>"
        )
        body = b"http://ns.adobe.com/xap/1.0/\0" + packet
        segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
        data = self.PLAIN[:2] + segment + self.PLAIN[2:]
        assert off(decode_image("x", data), by_pillow(data)) <= 3
        assert decode_image("x", data).shape[:2] == NOISE.shape[1::-1]

    @pytest.mark.parametrize("at_least", [None, 1, 5])
    def test_a_plain_jpeg_is_read_as_one_with_metadata(self, at_least):
        """What needs no Pillow gives the pixels that come of opening it with Pillow."""
        upright = encode(picture("RGB"), "JPEG", orientation=1, quality=95)
        for data in (self.PLAIN, encode(picture("L"), "JPEG")):
            found, scan = self.segments(data)
            comment = b"\xff\xe1\x00\x04no"
            slow = b"\xff\xd8" + comment + b"".join(found) + scan
            np.testing.assert_array_equal(
                decode_image("x", data, at_least), decode_image("x", slow, at_least)
            )
        np.testing.assert_array_equal(
            decode_image("x", upright, at_least), decode_image("x", self.PLAIN, at_least)
        )


class TestScaling:
    """A JPEG shrinks by averaging its blocks, and never below what is asked for."""

    @pytest.mark.parametrize(
        ("at_least", "scale"),
        [(None, 1), (37, 1), (20, 1), (19, 2), (11, 2), (10, 4), (6, 4), (5, 8), (1, 8), (1000, 1)],
    )
    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    @pytest.mark.parametrize("kind", JPEGS)
    def test_takes_the_smallest_size_that_is_enough(self, kind, mode, at_least, scale):
        data = encode(picture(mode), kind, orientation=8)
        assert decode_image("x", data, at_least).shape == (-(-WIDTH // scale), -(-HEIGHT // scale), 3)

    def test_is_for_jpeg_alone(self):
        for kind in ("PNG", "WEBP"):
            assert decode_image("x", encode(picture("RGB"), kind), 1).shape == (HEIGHT, WIDTH, 3)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    @pytest.mark.parametrize("scale", [2, 4, 8])
    def test_is_the_average_of_blocks(self, scale, mode, orientation):
        image = picture(mode, SMOOTH)
        data = encode(image, "JPEG", orientation, quality=100, subsampling="4:4:4")
        averages = box(np.asarray(image.convert("RGB")), scale).round().astype(np.uint8)
        expected = by_pillow(encode(averages, "PNG", orientation))
        assert off(decode_image("x", data, -(-HEIGHT // scale)), expected) <= 4


class TestBombs:
    """A header that claims gigapixels is refused before anything of that size is allocated."""

    @pytest.fixture
    def little_memory(self):
        resource = pytest.importorskip("resource")
        statm = Path("/proc/self/statm")
        if not statm.exists():
            pytest.skip("the process's size is read from /proc")
        held = int(statm.read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + 2**27, hard))
        yield
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    @pytest.mark.parametrize("at_least", [None, 1])
    @pytest.mark.parametrize("side", [10_000, 40_000])  # Pillow itself only warns of the former
    @pytest.mark.parametrize("kind", ["PNG", *JPEGS, "WEBP"])
    def test_are_refused(self, little_memory, kind, side, at_least):
        if kind == "PNG":
            data = png((side, side, 8, 2), bytes(100))
        elif kind == "WEBP":
            data = encode(picture("RGB"), "WEBP", orientation=1)  # metadata bring the extended header
            canvas = data.index(b"VP8X") + 12
            data = data[:canvas] + 2 * (side - 1).to_bytes(3, "little") + data[canvas + 6 :]
        else:
            data = with_size(encode(picture("RGB"), kind), side, side)
        with pytest.raises(UnreadableSample, match=r"decompression bomb|could not create decoder object"):
            decode_image("x", data, at_least)

    def test_a_second_reader_may_not_see_another_size(self):
        data = encode(picture("RGB"), "JPEG")
        with pytest.raises(ValueError, match="two sizes: 53×37 and 54×38"):
            read_pixels(open_image(data), with_size(data, 38, 54), 1)


class TestRoom:
    """Pixels go straight to the place that is given for them."""

    @pytest.mark.parametrize("orientation", [1, 3, 6, 7])
    @pytest.mark.parametrize(
        ("kind", "at_least"), [("JPEG", None), ("JPEG", 20), ("PNG", 20), ("WEBP", None)]
    )
    def test_is_asked_for_by_size_and_written_to(self, kind, at_least, orientation):
        exif = Image.Exif()
        exif[274] = orientation
        data = encode(np.random.default_rng(0).integers(0, 256, (83, 121, 3), np.uint8), kind, exif=exif)
        expected = decode_image("x", data, at_least)
        memory = np.zeros(expected.size + 7, np.uint8)
        asked = []

        def room(height, width):
            asked.append((height, width))
            return memory[: 3 * height * width].reshape(height, width, 3)

        out = decode_image("x", data, at_least, room)
        assert asked == [expected.shape[:2]]
        assert np.shares_memory(out, memory)
        assert np.array_equal(out, expected) and not memory[-7:].any()

    def test_of_an_oddity_that_is_read_otherwise_the_last_counts(self):
        """Pillow, which reads it, rounds the sides of a scaled JPEG in its own way."""
        data = encode(picture("RGB", SMOOTH), "JPEG")
        scan = data.rindex(b"\xff\xda")
        last = scan + 2 + struct.unpack(">H", data[scan + 2 : scan + 4])[0] - 2
        odd = data[:last] + b"\0" + data[last + 1 :]
        places = []

        def room(height, width):
            places.append(np.empty((height, width, 3), np.uint8))
            return places[-1]

        for at_least in (None, 10):
            out = decode_image("x", odd, at_least, room)
            assert out is places[-1] and np.array_equal(out, decode_image("x", odd, at_least))

    def test_damage_is_told_by_name(self):
        data = encode(np.random.default_rng(0).integers(0, 256, (83, 121, 3), np.uint8), "JPEG")
        with pytest.raises(UnreadableSample) as caught:
            decode_image(
                "a.jpg", data[: len(data) // 2], None, lambda *sides: np.empty((*sides, 3), np.uint8)
            )
        assert caught.value.name == "a.jpg"


class TestDamage:
    """What is cut off or damaged is an error, never grey."""

    def fails(self, data):
        with pytest.raises(UnreadableSample):
            decode_image("x", data)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.95])
    @pytest.mark.parametrize(
        ("kind", "mode"),
        [(kind, mode) for kind in ("PNG", *JPEGS, "WEBP") for mode in ("L", "RGB")]
        + [(kind, "CMYK") for kind in JPEGS],
    )
    def test_cut_off(self, kind, mode, share):
        whole = encode(picture(mode), kind)
        self.fails(whole[: int(len(whole) * share)])

    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    @pytest.mark.parametrize("kind", JPEGS)
    def test_damage_inside_a_jpeg(self, kind, mode):
        whole = encode(picture(mode, np.tile(NOISE, (4, 4, 1))), kind)
        middle = len(whole) // 2
        self.fails(whole[:-2])
        self.fails(whole[:middle] + b"\xff\xd9")
        self.fails(whole[:middle] + whole[middle + 500 :])
        self.fails(whole[:middle] + bytes(1000) + whole[middle + 1000 :])
        self.fails(whole[:middle] + b"\xff" * 1000 + whole[middle + 1000 :])

    @pytest.mark.parametrize("level", [0, 6])
    def test_a_bit_flipped_in_a_png(self, level):
        whole = encode(NOISE[..., :3], compress_level=level)
        rng = np.random.default_rng(3)
        for place in rng.integers(whole.index(b"IDAT") + 4, len(whole) - 16, 50):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.integers(8)
            self.fails(bytes(damaged))

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_bytes_after_the_end_do_no_harm(self, kind):
        whole = encode(picture("RGB"), kind)
        assert np.array_equal(decode_image("x", whole + b"junk" * 99), decode_image("x", whole))
