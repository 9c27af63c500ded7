import pickle

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from vpt_vision.data.folder import Folder, FolderConfig
from vpt_vision.data.source import UnreadableSample
from vpt_vision.errors import UserError


def write(path, colour, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    Image.new("RGB", size, (colour, 0, 0)).save(path, **options)


def open_folder(path, **options):
    return Folder(FolderConfig(kind="folder", path=path, **options), 8)


def colours(source):
    return [
        round(sample.image[..., 0].float().mean().item())
        for sample in map(source.__getitem__, range(len(source)))
    ]


def test_flat_folder_is_unlabelled_and_in_order_of_names(tmp_path):
    for number, name in enumerate(["b.png", "a.PNG", "d.webp", "c.v2.png"]):
        write(tmp_path / name, 10 * number)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves behind")
    source = open_folder(tmp_path)
    assert colours(source) == [10, 0, 30, 20]
    assert source.classes is None
    assert [source[i].label for i in range(4)] == [None] * 4
    assert [source[i].index for i in range(4)] == [0, 1, 2, 3]


def test_jpeg_suffixes(tmp_path):
    for name in ("a.jpg", "b.jpeg", "c.JPEG"):
        write(tmp_path / name, 200)
    assert np.allclose(colours(open_folder(tmp_path)), 200, atol=3)


def test_subfolders_are_classes(tmp_path):
    write(tmp_path / "dog" / "1.png", 1)
    write(tmp_path / "cat" / "deep" / "er" / "2.png", 2)
    write(tmp_path / "cat" / "3.png", 3)
    (tmp_path / "cow").mkdir()  # empty, and still a class: numbers agree with those of another split
    write(tmp_path / ".cache" / "4.png", 4)
    source = open_folder(tmp_path)
    assert source.classes == ["cat", "cow", "dog"]
    assert {colour: source[i].label for i, colour in enumerate(colours(source))} == {1: 2, 2: 0, 3: 0}


def test_files_beside_an_image_label_it(tmp_path):
    segmentation = np.arange(64, dtype=np.uint8).reshape(8, 8)
    depth = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    write(tmp_path / "some" / "a.png", 1)
    (tmp_path / "some" / "a.cls").write_text(" 2\n")
    Image.fromarray(segmentation).save(tmp_path / "some" / "a.seg.png")
    Image.fromarray(depth).save(tmp_path / "some" / "a.depth.png")
    write(tmp_path / "b.png", 2)
    source = open_folder(tmp_path)
    assert len(source) == 2 and source.classes == ["0", "1", "2"]
    plain, labelled = source[0], source[1]
    assert (plain.label, plain.segmentation, plain.depth) == (None, None, None)
    assert labelled.label == 2
    assert np.array_equal(labelled.segmentation, segmentation)
    assert np.array_equal(labelled.depth, depth / 1000)


def test_depth_in_metres(tmp_path):
    metres = np.linspace(0.5, 9, 64, dtype=np.float32).reshape(8, 8)
    write(tmp_path / "a.png", 1)
    np.save(tmp_path / "a.depth.npy", metres)
    assert np.array_equal(open_folder(tmp_path)[0].depth, metres)
    (tmp_path / "a.depth.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"both a\.depth\.png and a\.depth\.npy"):
        open_folder(tmp_path)


def test_unreadable_files_are_named(tmp_path):
    write(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes(b"")
    write(tmp_path / "c.png", 3)
    source = open_folder(tmp_path)
    (tmp_path / "c.png").unlink()
    for index, name in ((1, "b.png"), (2, "c.png")):
        with pytest.raises(UnreadableSample) as caught:
            source[index]
        assert caught.value.name == str(tmp_path / name)
    with pytest.raises(UnreadableSample, match="No such file"):
        source[2]


def test_survives_pickling(tmp_path):
    write(tmp_path / "x" / "a.png", 7)
    source = pickle.loads(pickle.dumps(open_folder(tmp_path)))
    assert (colours(source), source.classes, source[0].label) == ([7], ["x"], 0)


class TestErrors:
    def fails(self, match, path, **options):
        with pytest.raises(UserError, match=match) as caught:
            open_folder(path, **options)
        assert "\n" not in str(caught.value)

    def test_missing(self, tmp_path):
        self.fails("nowhere does not exist", tmp_path / "nowhere")

    def test_a_file(self, tmp_path):
        write(tmp_path / "a.png", 1)
        self.fails("a.png is a file", tmp_path / "a.png")

    def test_empty(self, tmp_path):
        self.fails("holds no image", tmp_path)

    def test_only_other_files(self, tmp_path):
        (tmp_path / "a.gif").write_bytes(b"GIF89a")
        (tmp_path / "a.seg.png").write_bytes(b"")
        self.fails("holds no image", tmp_path)

    def test_images_beside_class_folders(self, tmp_path):
        write(tmp_path / "a.png", 1)
        write(tmp_path / "dog" / "b.png", 1)
        self.fails("beside subfolders", tmp_path)

    @pytest.mark.parametrize("text", ["dog", "-1", "1.0", "", "1 2", "1000000", "1_0", "٣"])
    def test_bad_class(self, tmp_path, text):
        write(tmp_path / "a.png", 1)
        (tmp_path / "a.cls").write_text(text)
        self.fails(r"a\.cls holds", tmp_path)

    def test_label_out_of_range(self, tmp_path):
        write(tmp_path / "a.png", 1)
        (tmp_path / "a.cls").write_text("10")
        self.fails("label 10, out of the range 0 to 9", tmp_path, classes=10)
        assert open_folder(tmp_path, classes=12).classes == [str(number) for number in range(12)]

    def test_unknown_key(self, tmp_path):
        with pytest.raises(ValidationError):
            FolderConfig(kind="folder", root=tmp_path)
