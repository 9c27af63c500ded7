import json
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from vpt_vision.data import FolderConfig
from vpt_vision.errors import UserError
from vpt_vision.evaluation.cache import CacheConfig
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.ground_truth import GroundTruth, read_ground_truth
from vpt_vision.evaluation.probes import EvaluationConfig, probe
from vpt_vision.evaluation.revisited import RetrievalConfig, instance_retrieval
from vpt_vision.task import Renderer


def features(count, seed):
    generator = torch.Generator().manual_seed(seed)
    cls = torch.randn(count, 1, 5, generator=generator)
    return ProbeFeatures(cls, torch.zeros(count, 1), torch.full((count,), -1), torch.arange(count))


def by_hand(scores, right, junk):
    """Average precision by the published definition: places go up by each junk image that stands before."""
    ranked = sorted(range(len(scores)), key=lambda image: -scores[image])
    passed_over, found, area = 0, 0, 0.0
    for place, image in enumerate(ranked):
        if image in junk:
            passed_over += 1
        elif image in right:
            rank = place - passed_over
            before = 1.0 if rank == 0 else found / rank
            found += 1
            area += (before + found / (rank + 1)) / 2 / len(right)
    return area


@st.composite
def truths(draw):
    count = draw(st.integers(1, 20))
    kinds = st.lists(st.sampled_from(["easy", "hard", "junk", "wrong"]), min_size=count, max_size=count)
    judged = draw(st.lists(kinds, min_size=1, max_size=4))
    gnd = [
        {kind: [n for n, own in enumerate(row) if own == kind] for kind in ("easy", "hard", "junk")}
        for row in judged
    ]
    return {
        "imlist": [f"i{n}" for n in range(count)],
        "qimlist": [f"q{n}" for n in range(len(gnd))],
        "gnd": gnd,
    }


@given(truths(), st.integers(0, 10**6))
def test_agrees_with_the_published_definition_image_by_image(raw, seed):
    truth = GroundTruth.model_validate(raw)
    database, queries = features(len(truth.imlist), seed), features(len(truth.qimlist), seed + 1)
    assume(any(judged.easy or judged.hard for judged in truth.gnd))
    found = {result.probe.split(", ")[1]: result for result in instance_retrieval(database, queries, truth)}
    for protocol, right, junk in (
        ("easy", ["easy"], ["junk", "hard"]),
        ("medium", ["easy", "hard"], ["junk"]),
        ("hard", ["hard"], ["junk", "easy"]),
    ):
        expected = {}
        for number, judged in enumerate(raw["gnd"]):
            wanted = {image for kind in right for image in judged[kind]}
            if wanted:
                query = queries.cls[number].double()
                scores = [
                    float(query @ other / query.norm() / other.norm()) for other in database.cls.double()
                ]
                expected[number] = by_hand(scores, wanted, {image for kind in junk for image in judged[kind]})
        if not expected:
            assert protocol not in found
            continue
        assert found[protocol].index.tolist() == list(expected)
        assert found[protocol].figures["map"].values.tolist() == pytest.approx(list(expected.values()))


def test_nothing_to_judge_by_is_said():
    truth = GroundTruth(imlist=["a"], qimlist=["q"], gnd=[{"junk": [0]}])
    with pytest.raises(UserError, match="no query of the ground truth has a right image"):
        instance_retrieval(features(1, 0), features(1, 1), truth)


class Command:
    def __reduce__(self):
        return os.system, ("touch pwned",)


class TestFiles:
    raw = {  # noqa: RUF012
        "imlist": ["a", "b", "c"],
        "qimlist": ["q"],
        "gnd": [{"easy": np.array([0]), "hard": [np.int64(2)], "junk": np.empty(0), "bbx": np.ones(4)}],
    }

    @pytest.mark.parametrize("protocol", [2, 4])
    def test_a_pickle_of_arrays_and_json_say_the_same(self, tmp_path, protocol):
        (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(self.raw, protocol=protocol))
        plain = {**self.raw, "gnd": [{"easy": [0], "hard": [2], "junk": [], "bbx": [1, 1, 1, 1]}]}
        (tmp_path / "gnd.json").write_text(json.dumps(plain))
        found = read_ground_truth(tmp_path / "gnd.pkl")
        assert found == read_ground_truth(tmp_path / "gnd.json") == GroundTruth.model_validate(plain)

    def test_modules_of_older_and_newer_numpy_are_known(self, tmp_path):
        written = pickle.dumps(self.raw, protocol=2)
        for name in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
            (tmp_path / "gnd.pkl").write_bytes(
                written.replace(b"cnumpy._core.multiarray", b"c" + name).replace(
                    b"cnumpy.core.multiarray", b"c" + name
                )
            )
            assert read_ground_truth(tmp_path / "gnd.pkl").gnd[0].easy == [0]

    def test_a_pickle_that_would_run_a_command_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "gnd.pkl").write_bytes(pickle.dumps({**self.raw, "extra": Command()}))
        with pytest.raises(UserError, match=r"asks for \w+\.system"):
            read_ground_truth(tmp_path / "gnd.pkl")
        assert not (tmp_path / "pwned").exists()

    @pytest.mark.parametrize(
        ("written", "told"),
        [
            (b"", "is no ground truth"),
            (pickle.dumps([1, 2]), "is no ground truth"),
            (pickle.dumps({"imlist": ["a"], "qimlist": ["q"]}), "gnd: Field required"),
            (pickle.dumps({"imlist": ["a"], "qimlist": ["q"], "gnd": [{"easy": [1]}]}), "image 1 of 1"),
            (pickle.dumps({"imlist": ["a"], "qimlist": ["q", "r"], "gnd": [{}]}), "2 queries, and judge"),
        ],
    )
    def test_what_it_does_not_say_is_told(self, tmp_path, written, told):
        (tmp_path / "gnd.pkl").write_bytes(written)
        with pytest.raises(UserError, match=told):
            read_ground_truth(tmp_path / "gnd.pkl")

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_ground_truth(tmp_path / "gnd.pkl")


class TestProbe:
    @pytest.fixture
    def photos(self, tmp_path):
        """Six photos, and queries: cut from the corners of larger pictures, all else of which is noise."""
        rng = np.random.default_rng(0)
        (tmp_path / "photos").mkdir()
        for number in range(6):
            photo = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            larger = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
            larger[20:36, 30:46] = photo
            Image.fromarray(photo).save(tmp_path / "photos" / f"photo_{number}.png")
            Image.fromarray(larger).save(tmp_path / "photos" / f"query_{number}.png")
        return tmp_path / "photos"

    @pytest.fixture
    def config(self, photos, tmp_path):
        truth = {
            "imlist": [f"photo_{number}" for number in reversed(range(6))],
            "qimlist": [f"query_{number}" for number in range(6)],
            "gnd": [
                {"easy": [], "hard": [5 - number], "junk": [], "bbx": [30.2, 20, 46, 36]}
                for number in range(6)
            ],
        }
        (tmp_path / "gnd.json").write_text(json.dumps(truth))
        folder = FolderConfig(kind="folder", path=photos)
        return EvaluationConfig(
            train=folder,
            test=folder,
            image_size=16,
            cache=CacheConfig(folder=tmp_path / "cache"),
            retrieval=RetrievalConfig(ground_truth=tmp_path / "gnd.json"),
        )

    def test_a_querys_box_finds_what_it_was_cut_from(self, config, backbone, caplog):
        for _ in range(2):
            results = probe(backbone, config, ["retrieval"], renderer=Renderer())["retrieval"]
            assert [result.probe for result in results] == [
                "instance retrieval, medium",
                "instance retrieval, hard",
            ]
            assert all(result.value("map") == 1.0 for result in results)
        assert (
            len(list(config.cache.folder.glob("*.safetensors"))) == 2
        )  # and the second time they were there

    def test_an_image_that_is_not_there_is_named(self, config, photos, backbone):
        (photos / "photo_3.png").unlink()
        with pytest.raises(UserError, match="no image named photo_3"):
            probe(backbone, config, ["retrieval"], renderer=Renderer())

    def test_an_image_that_cannot_be_read_is_named(self, config, photos, backbone):
        (photos / "photo_3.png").write_bytes(b"no image")
        config = config.model_copy(update={"max_unreadable": 0.5})
        with pytest.raises(UserError, match="photo_3, which the ground truth speaks of, cannot be read"):
            probe(backbone, config, ["retrieval"], renderer=Renderer())
