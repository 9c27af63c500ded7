import filecmp
import io
import os
import signal
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from vpt_vision.data import Folder, FolderConfig, Shards, ShardsConfig
from vpt_vision.data.shard_index import index_path
from vpt_vision.data.tools.check import check
from vpt_vision.data.tools.opening import open_source
from vpt_vision.data.tools.shard import ShardSize, parse_size, write_shards
from vpt_vision.data.tools.show import contact_sheet, save_sheet
from vpt_vision.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    """Build a folder of two classes with maps: 30 images, of which number 7 is no image and 8 is cut off."""
    root = tmp_path / "photos"
    for number in range(30):
        path = root / ["cat", "dog"][number % 2] / f"{number:02d}.v2"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 256, (20, 30, 3), np.uint8)
        kind = ["jpg", "png", "webp"][number % 3]
        Image.fromarray(pixels if number != 12 else pixels[..., 0]).save(f"{path}.{kind}")
    Image.fromarray(np.eye(20, 30, dtype=np.uint8)).save(root / "cat" / "00.v2.seg.png")
    np.save(root / "cat" / "00.v2.depth.npy", np.linspace(0, 9, 600).reshape(20, 30))
    (root / "dog" / "07.v2.png").write_bytes(b"nothing")
    whole = (root / "cat" / "08.v2.webp").read_bytes()
    (root / "cat" / "08.v2.webp").write_bytes(whole[: len(whole) // 2])
    return root


def open_folder(root):
    return Folder(FolderConfig(kind="folder", path=root), 16)


def open_shards(root):
    return Shards(ShardsConfig(kind="shards", path=str(root / "*.tar")), 16)


def contents(source):
    """Everything a source holds but the names, as a sorted list; what has no known suffix is left out."""
    stored = [source.stored(index) for index in range(len(source))]
    return sorted(
        (one.image, one.label, one.segmentation or b"", one.depth or b"")
        for one in stored
        if one.image != b"nothing"
    )


class TestShard:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_holds_the_source_byte_for_byte(self, photos, tmp_path, workers):
        source = open_folder(photos)
        report = write_shards(source, tmp_path / "out", ShardSize(8, None), workers=workers)
        shards = open_shards(tmp_path / "out")
        assert contents(shards) == contents(source)
        assert shards.classes == ["cat", "dog"]
        assert (report.shards, report.kept, report.samples, report.left_out) == (4, 0, 29, 1)
        assert [line.rsplit("/", 1)[1] for line in report.named] == [
            "07.v2.png: not a JPEG, PNG or WebP image"
        ]
        counts = [len(open_shards_of(path)) for path in sorted((tmp_path / "out").glob("*.tar"))]
        assert sum(counts) == 29 and max(counts) <= 8 and min(counts) >= 6
        assert check(shards).faults == []

    def test_is_read_by_webdataset(self, photos, tmp_path):
        write_shards(open_folder(photos), tmp_path / "out", ShardSize(100, None))
        (path,) = (tmp_path / "out").glob("*.tar")
        read = list(webdataset.WebDataset(str(path), shardshuffle=False))
        assert len(read) == 29
        assert {key for sample in read for key in sample if not key.startswith("__")} == {
            *("jpg", "png", "webp", "cls", "seg.png", "depth.npy")
        }
        assert {sample["__key__"] for sample in read if "seg.png" in sample} == {"00-cat_00_v2"}

    def test_shuffles_as_a_function_of_the_seed(self, photos, tmp_path):
        def keys(name, **options):
            write_shards(open_folder(photos), tmp_path / name, ShardSize(100, None), **options)
            return [int(sample.key[:2]) for sample in map(*stored_of(tmp_path / name))]

        one, two, other, plain = keys("a"), keys("b"), keys("c", seed=1), keys("d", in_order=True)
        assert one == two != other and sorted(one) == sorted(other) == plain == sorted(plain)
        assert one != plain
        assert filecmp.cmp(tmp_path / "a/shard-000000.tar", tmp_path / "b/shard-000000.tar", shallow=False)

    @pytest.mark.parametrize("limit", [30_000, 45_000, 100_000])
    def test_by_bytes(self, photos, tmp_path, limit):
        write_shards(open_folder(photos), tmp_path / "out", ShardSize(None, limit))
        lengths = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
        assert max(lengths) <= limit
        assert max(lengths) - min(lengths) <= 2 * tarfile.RECORDSIZE
        assert len(open_shards(tmp_path / "out")) == 29

    def test_goes_on_after_a_kill(self, photos, tmp_path):
        source = open_folder(photos)
        write_shards(source, tmp_path / "whole", ShardSize(5, None))
        process = os.fork()
        if process == 0:
            read = source.stored
            source.stored = lambda index: os.kill(os.getpid(), 9) if index == 17 else read(index)
            write_shards(source, tmp_path / "out", ShardSize(5, None), workers=0)
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
        done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
        report = write_shards(source, tmp_path / "out", ShardSize(5, None))
        assert report.kept == len(done) and report.shards == 6
        assert all(path.stat().st_mtime_ns == then for path, then in done.items())
        same = filecmp.dircmp(tmp_path / "whole", tmp_path / "out")
        assert not (same.left_only or same.right_only or same.diff_files)

    def test_a_folder_that_holds_something_else(self, photos, tmp_path):
        source = open_folder(photos)
        write_shards(source, tmp_path / "out", ShardSize(5, None))
        for options in ({"seed": 1}, {"in_order": True}):
            with pytest.raises(UserError, match="holds other files, or shards of another source"):
                write_shards(source, tmp_path / "out", ShardSize(5, None), **options)
        with pytest.raises(UserError, match="name an empty folder"):
            write_shards(source, photos, ShardSize(5, None))
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="file cannot be written"):
            write_shards(source, tmp_path / "file", ShardSize(5, None))

    @pytest.mark.parametrize(
        ("text", "size"),
        [("1000", (1000, None)), ("256MB", (None, 256_000_000)), ("1.5 gb", (None, 1_500_000_000))],
    )
    def test_sizes(self, text, size):
        assert parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "0", "1.5", "MB", "-3", "10 MiB"])
    def test_no_sizes(self, text):
        with pytest.raises(UserError, match="no size of a shard"):
            parse_size(text)


def open_shards_of(path):
    return Shards(ShardsConfig(kind="shards", path=str(path)), 16)


def stored_of(root):
    source = open_shards(root)
    return source.stored, range(len(source))


class TestCheck:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_folder(self, photos, workers):
        report = check(open_folder(photos), workers=workers)
        assert not report.is_whole
        assert [broken.name for broken in report.broken] == [
            str(photos / "cat/08.v2.webp"),
            str(photos / "dog/07.v2.png"),
        ]
        found = report.summary()
        assert found["samples"] == 30 and found["unlabelled"] == 0
        assert found["formats"] == {"JPEG": 10, "PNG": 9, "WEBP": 9}
        assert found["modes"] == {"RGB": 27, "L": 1}
        assert found["labels"] == {"cat": 14, "dog": 14}
        assert found["width"] == {"min": 30, "median": 30, "max": 30} and found["height"]["max"] == 20
        assert (found["segmentation"], found["depth"]) == (1, 1)
        assert found["bytes"] == sum(path.stat().st_size for path in photos.rglob("*.*"))
        told = "\n".join(report.lines())
        assert "07.v2.png: not a JPEG" in told and "dog       14 █" in told

    def test_shards_by_shard(self, photos, tmp_path):
        write_shards(open_folder(photos), tmp_path / "out", ShardSize(8, None))
        last = tmp_path / "out" / "shard-000003.tar"
        last.write_bytes(last.read_bytes()[:6000])
        report = check(open_shards(tmp_path / "out"))
        assert report.faults == [
            f"{last} is cut off or damaged from byte 6000 on",
            f"{index_path(last)} does not tell what its shard holds: delete it",
        ]
        assert set(report.summary()["broken_by_shard"]) >= {str(last)}
        assert "the shard ends inside this sample" in {broken.reason for broken in report.broken}

    def test_an_index_of_another_shard_of_the_same_length(self, photos, tmp_path):
        write_shards(open_folder(photos), tmp_path / "out", ShardSize(8, None))
        path = index_path(tmp_path / "out" / "shard-000001.tar")
        path.write_text(path.read_text().replace("-cat_", "-cow_"))
        assert check(open_shards(tmp_path / "out")).faults == [
            f"{path} does not tell what its shard holds: delete it"
        ]

    def test_a_whole_source(self, tmp_path):
        Image.new("RGB", (8, 9)).save(tmp_path / "a.png")
        report = check(open_folder(tmp_path))
        assert report.is_whole and "labels   none" in list(report.lines())


class TestShow:
    def test_pictures_of_image_and_maps(self, photos, tmp_path):
        source = open_folder(photos)
        sheet = contact_sheet(source, 30, count=30, columns=6)
        save_sheet(sheet, tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        shown = source[0].image.numpy()
        places = [
            (top, left)
            for top in range(pixels.shape[0] - 20)
            for left in range(pixels.shape[1] - 30)
            if np.array_equal(pixels[top : top + 20, left : left + 30], shown)
        ]
        ((top, left),) = places
        over = pixels[top : top + 20, left + 30 : left + 60].astype(int)
        same = source[0].segmentation.numpy() == 0
        blue = np.array([31, 119, 180])  # the first colour of matplotlib's tab20
        assert np.abs(over[same] - (shown[same] + blue) / 2).max() <= 1
        assert np.abs(over[~same] - (shown[~same] + blue) / 2).max() > 1
        depth = pixels[top : top + 20, left + 60 : left + 90].astype(int).sum(-1)
        assert depth[-1, -1] > depth[1, 1]  # far is light

    def test_fewer_samples_than_asked_for(self, tmp_path):
        Image.new("RGB", (8, 9), (255, 0, 0)).save(tmp_path / "a.png")
        sheet = contact_sheet(open_folder(tmp_path), 16)
        assert sheet.size == (24, 42) and sheet.getpixel((12, 12)) == (255, 0, 0)
        assert sheet.getpixel((4, 12)) == (255, 255, 255)  # 8 of 9 as wide as high, so centred

    def test_a_file_that_cannot_be_written(self, tmp_path):
        for name in ("none/sheet.png", "sheet.xyz"):
            with pytest.raises(UserError, match=r"cannot be written \(.*\): name a \.png file"):
                save_sheet(Image.new("RGB", (4, 4)), tmp_path / name)


class TestOpening:
    def test_the_kind_is_seen_from_what_lies_there(self, photos, tmp_path):
        write_shards(open_folder(photos), tmp_path / "out", ShardSize(8, None))
        assert type(open_source(str(photos), [], 16)) is Folder
        for where in (tmp_path / "out", tmp_path / "out" / "shard-00000{0..3}.tar"):
            source = open_source(str(where), [], 16)
            assert type(source) is Shards and len(source) == 29
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "dataset_info.json").write_text("{}")
        with pytest.raises(UserError, match=r"datasets|holds no data set"):
            open_source(str(tmp_path / "saved"), [], 16)

    def test_settings(self, photos, tmp_path):
        (tmp_path / "a.tar").write_bytes(shard_of_one())
        assert len(open_source(str(tmp_path / "a.tar"), ["classes=5"], 16).classes) == 5
        with pytest.raises(UserError, match="clases: unknown key; the nearest known key is 'classes'"):
            open_source(str(tmp_path / "a.tar"), ["clases=5"], 16)
        with pytest.raises(UserError, match=r"remote\.retries: input should be greater"):
            open_source(str(tmp_path / "a.tar"), ["remote.retries=-5"], 16)


def shard_of_one():
    file, picture = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with webdataset.TarWriter(file, encoder=False) as writer:
        writer.write({"__key__": "a", "png": picture.getvalue(), "cls": b"1"})
    return file.getvalue()
