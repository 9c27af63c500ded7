import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from vpt_vision.data.huggingface import HuggingFace, HuggingFaceConfig
from vpt_vision.data.source import UnreadableSample
from vpt_vision.errors import UserError


def png(number):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def open_rows(path, **options):
    return HuggingFace(HuggingFaceConfig(kind="huggingface", path=path, **options), 8)


def test_without_the_package_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="not installed: pip install datasets"):
        open_rows(tmp_path)


@pytest.mark.parametrize(
    "body",
    ["import no_such_package_at_all", "raise AttributeError('no attribute')", "raise ImportError('old')"],
)
def test_a_package_that_fails_by_itself_is_told_apart(tmp_path, monkeypatch, body):
    (tmp_path / "datasets.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    with pytest.raises(UserError, match=r"installed but fails by itself \(.*datasets>=3\.0") as caught:
        open_rows(tmp_path)
    assert "\n" not in str(caught.value)


class TestInstalled:
    @pytest.fixture
    def datasets(self):
        return pytest.importorskip("datasets")

    @pytest.fixture
    def save(self, datasets, tmp_path):
        def save(columns, name="set"):
            features = {
                column: {
                    "img": datasets.Image(),
                    "thumb": datasets.Image(),
                    "label": datasets.ClassLabel(names=["cat", "cow", "dog"]),
                    "fine": datasets.Value("int64"),
                    "word": datasets.Value("string"),
                }[column]
                for column in columns
            }
            rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
            rows.save_to_disk(str(tmp_path / name))
            return tmp_path / name

        return save

    images = tuple({"bytes": png(number), "path": None} for number in range(3))

    def test_columns_are_found(self, save):
        source = open_rows(save({"img": list(self.images), "label": [2, 0, -1], "word": ["a", "b", "c"]}))
        assert [int(source[i].image[0, 0, 0]) for i in range(3)] == [0, 1, 2]
        assert source.classes == ["cat", "cow", "dog"]
        assert [source[i].label for i in range(3)] == [2, 0, None]
        assert source.stored(1).image == png(1)
        assert source.lengths().tolist() == [[len(png(number)), 0, 0] for number in range(3)]
        assert int(pickle.loads(pickle.dumps(source))[2].image[0, 0, 0]) == 2

    def test_columns_are_named(self, save):
        path = save({"img": list(self.images), "thumb": list(self.images[::-1]), "fine": [4, 1, 0]})
        source = open_rows(path, image_column="thumb", label_column="fine")
        assert int(source[0].image[0, 0, 0]) == 2
        assert source.classes == ["0", "1", "2", "3", "4"] and source[0].label == 4
        with pytest.raises(UserError, match="image columns img, thumb: name one"):
            open_rows(path)
        with pytest.raises(UserError, match="no column size, only img, thumb, fine"):
            open_rows(path, image_column="size")

    def test_unlabelled(self, save):
        source = open_rows(save({"img": list(self.images)}))
        assert source.classes is None and source[0].label is None

    def test_what_cannot_be_read_is_named(self, save):
        source = open_rows(save({"img": [{"bytes": b"nothing", "path": None}, None]}))
        for index, reason in enumerate(["not a JPEG", "no image"]):
            with pytest.raises(UnreadableSample, match=reason) as caught:
                source[index]
            assert caught.value.name.endswith(f"set: row {index}")
        assert source.lengths().tolist() == [[7, 0, 0], [0, 0, 0]]

    def test_splits(self, save, datasets, tmp_path):
        rows = datasets.load_from_disk(str(save({"img": list(self.images)})))
        datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "both"))
        assert len(open_rows(tmp_path / "both", split="test")) == 1
        with pytest.raises(UserError, match="splits train, test, not None"):
            open_rows(tmp_path / "both")
        with pytest.raises(UserError, match="no splits"):
            open_rows(tmp_path / "set", split="train")

    def test_no_data_set(self, save, tmp_path):
        with pytest.raises(UserError, match="holds no data set"):
            open_rows(tmp_path)
        with pytest.raises(UserError, match="no column of images among word"):
            open_rows(save({"word": ["a"]}))
        path = save({"img": list(self.images), "word": ["a", "b", "c"]}, "words")
        with pytest.raises(UserError, match="the label 'a' in its column word"):
            open_rows(path, label_column="word")
        assert np.array_equal(open_rows(path)[0].image[..., 1:], np.zeros((8, 8, 2)))
