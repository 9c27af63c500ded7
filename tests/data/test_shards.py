import gzip
import io
import logging
import pickle
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from vpt_vision.data.shards import Shards, ShardsConfig
from vpt_vision.data.source import UnreadableSample
from vpt_vision.errors import UserError


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def image(number):
    """Make an image of some 300 bytes, known by its first pixel."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    pixels[0, 0] = number
    return png(pixels)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def open_shards(path, **options):
    return Shards(ShardsConfig(kind="shards", path=str(path), **options), 8)


def numbers(source):
    return [int(source[i].image[0, 0, 0]) for i in range(len(source))]


def test_reads_what_webdataset_writes(tmp_path):
    segmentation = np.arange(64, dtype=np.uint8).reshape(8, 8)
    depth = np.arange(64, dtype=np.uint16).reshape(8, 8) * 700
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=3, verbose=0) as writer:
        for number in range(8):
            writer.write(
                {
                    "__key__": f"folder/{number:03d}",
                    "png": image(number),
                    "cls": number % 3,
                    "seg.png": png(segmentation),
                    "depth.png": png(depth),
                    "json": {"of no use": 1},
                }
            )
    source = open_shards(tmp_path / "train-{000000..000002}.tar")
    assert numbers(source) == list(range(8))
    assert source.classes == ["0", "1", "2"]
    for i in range(8):
        sample = source[i]
        assert (sample.index, sample.label) == (i, i % 3)
        assert np.array_equal(sample.segmentation, segmentation)
        assert np.allclose(sample.depth, depth / 1000)
    assert numbers(open_shards(tmp_path / "*.tar")) == list(range(8))
    assert numbers(pickle.loads(pickle.dumps(source))) == list(range(8))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_as_they_lie(tmp_path, format):
    """Long names, unlabelled samples, names webdataset ignores, samples without an image, stray members."""
    long = "x" * 90 + "/" + "y" * 90
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        members = [
            ("a.PNG", image(1)),
            ("b.cls", b"1"),
            (f"{long}.png", image(2)),
            (f"{long}.pyd", b"cos\nsystem"),
        ]
        members += [("._a.png", b"junk"), ("noextension", b""), ("c.png", image(3)), ("c.cls", b"4\n")]
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_shards(tmp_path / "a.tar")
    assert numbers(source) == [1, 2, 3]
    assert [source[i].label for i in range(3)] == [None, None, 4]
    assert source.classes == ["0", "1", "2", "3", "4"]


def test_depth_in_metres_and_no_pickle(tmp_path):
    metres, hostile = io.BytesIO(), io.BytesIO()
    np.save(metres, np.full((8, 8), 2.5))
    np.save(hostile, np.array([[open]], object), allow_pickle=True)
    members = [("a.png", image(1)), ("a.depth.npy", metres.getvalue()), ("a.pyd", pickle.dumps(open))]
    members += [("b.png", image(2)), ("b.depth.npy", hostile.getvalue())]
    source = open_shards(write_tar(tmp_path / "a.tar", members))
    assert (source[0].depth == 2.5).all()
    with pytest.raises(UnreadableSample, match="allow_pickle=False"):
        source[1]
    both = [("a.png", image(1)), ("a.depth.npy", b""), ("a.depth.png", b"")]
    with pytest.raises(UserError, match="keep one depth map"):
        open_shards(write_tar(tmp_path / "b.tar", both))


def test_unlabelled(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", image(1))])
    source = open_shards(tmp_path / "a.tar")
    assert source.classes is None
    assert source[0].label is None


def test_corrupt_image_is_named(tmp_path):
    members = [("a.png", image(1)), ("b.jpg", b"\xff\xd8\xff nothing"), ("c.png", b"")]
    write_tar(tmp_path / "a.tar", [*members, ("d.png", image(4)), ("d.seg.png", b"")])
    source = open_shards(tmp_path / "a.tar")
    assert source[0].image.shape[2] == 3
    for index, key in ((1, "b"), (2, "c"), (3, "d")):
        with pytest.raises(UnreadableSample) as caught:
            source[index]
        assert caught.value.name == f"{tmp_path / 'a.tar'}: {key}"


class TestCutOff:
    """A shard that ends too early, wherever: what it holds whole is read, and the log names the shard."""

    members = tuple(
        (f"{n}.{ext}", data) for n in range(3) for ext, data in (("png", image(n)), ("cls", b"%d" % n))
    )

    @pytest.mark.parametrize("blocks", range(4, 13))  # each member is a header block and a data block
    @pytest.mark.parametrize("rest", [0, 100])
    def test_cut(self, tmp_path, caplog, blocks, rest):
        whole = write_tar(tmp_path / "a.tar", self.members).read_bytes()
        assert all(100 < len(data) <= 512 for name, data in self.members if name.endswith("png"))
        (tmp_path / "a.tar").write_bytes(whole[: blocks * 512 + rest])
        with caplog.at_level(logging.WARNING):
            source = open_shards(tmp_path / "a.tar")
        assert "a.tar is cut off or damaged" in caplog.text
        readable = []
        for i in range(len(source)):
            try:
                readable.append(int(source[i].image[0, 0, 0]))
            except UnreadableSample as error:
                assert "shard ends" in error.reason and i == len(source) - 1
        images = (blocks + 2) // 4
        cut_label = blocks % 4 == 3 and not rest  # an image whose label is cut is not taken for unlabelled
        assert readable == list(range(images - cut_label))

    def test_whole_shard_is_not_complained_of(self, tmp_path, caplog):
        write_tar(tmp_path / "a.tar", self.members)
        with caplog.at_level(logging.WARNING):
            open_shards(tmp_path / "a.tar")
        assert not caplog.text

    def test_shard_shortened_after_it_was_opened(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", self.members)
        source = open_shards(path)
        path.write_bytes(path.read_bytes()[:1500])
        assert int(source[0].image[0, 0, 0]) == 0
        with pytest.raises(UnreadableSample, match="shard ends"):
            source[1]
        path.unlink()
        with pytest.raises(UnreadableSample, match="No such file"):
            source[0]


class TestErrors:
    def fails(self, match, path, **options):
        with pytest.raises(UserError, match=match) as caught:
            open_shards(path, **options)
        assert "\n" not in str(caught.value)

    def test_missing_shard(self, tmp_path):
        write_tar(tmp_path / "t-0.tar", [("a.png", image(1))])
        self.fails(r"t-1\.tar", tmp_path / "t-{0..2}.tar")
        self.fails(r"u-\*\.tar", tmp_path / "u-*.tar")

    def test_bad_pattern(self, tmp_path):
        self.fails("close its braces", tmp_path / "t-{0..1.tar")
        self.fails("close its braces", tmp_path / "${NOT_SET_ANYWHERE}.tar")

    def test_no_image(self, tmp_path):
        self.fails("holds no image", write_tar(tmp_path / "a.tar", [("a.cls", b"1")]))
        self.fails("holds no image", write_tar(tmp_path / "b.tar", []))

    def test_not_a_tar(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(b"x" * 2000)
        self.fails("no plain tar", tmp_path / "a.tar")
        (tmp_path / "b.tar").write_bytes(b"")
        self.fails("no plain tar", tmp_path / "b.tar")

    def test_compressed(self, tmp_path):
        whole = write_tar(tmp_path / "a.tar", [("a.png", image(1))]).read_bytes()
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole))
        self.fails("unpack compressed shards", tmp_path / "a.tar.gz")

    def test_folder_in_place_of_a_shard(self, tmp_path):
        self.fails("cannot be read", tmp_path)

    @pytest.mark.parametrize("name", ["/abs/a.png", "../a.png", "x/../../a.png", "x/.."])
    def test_leading_out(self, tmp_path, name):
        self.fails("leads out of it", write_tar(tmp_path / "a.tar", [("b.png", image(1)), (name, image(1))]))

    @pytest.mark.parametrize("text", [b"dog", b"-1", b"1.5", b"", b"\xff", b"1000000"])
    def test_bad_class(self, tmp_path, text):
        self.fails(r"a\.cls holds", write_tar(tmp_path / "a.tar", [("a.png", image(1)), ("a.cls", text)]))

    def test_label_out_of_range(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("a.png", image(1)), ("a.cls", b"3")])
        self.fails("label 3, out of the range 0 to 2", path, classes=3)
        assert open_shards(path, classes=4).classes == ["0", "1", "2", "3"]

    def test_member_twice(self, tmp_path):
        self.fails("twice", write_tar(tmp_path / "a.tar", [("a.png", image(1)), ("a.png", image(2))]))
