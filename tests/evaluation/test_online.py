import pytest
import torch
from pydantic import ValidationError

from vpt_vision.data import FashionScenes, FashionScenesConfig
from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import Reading, extract
from vpt_vision.evaluation.knn import knn
from vpt_vision.evaluation.online import OnlineConfig, OnlineProbe
from vpt_vision.evaluation.splits import validation_part
from vpt_vision.logistic import fit_logistic
from vpt_vision.task import Renderer

CONFIG = OnlineConfig(every=5, images=120, neighbours=10)


def scenes(count=150, size=32):
    return FashionScenes(FashionScenesConfig(kind="fashion_scenes", split="train", count=count, size=size))


def probe(config=CONFIG, source=None, **options):
    options = {"size": 16, "precision": "fp32", "reading": Reading(50), "seed": 3, **options}
    return OnlineProbe(config, source or scenes(), Renderer(), **options)


def figures(found):
    return {name: value for name, value in found.items() if name != "online/seconds"}


def test_figures_are_those_of_the_probes_on_freshly_read_images(backbone):
    online = probe(CONFIG.model_copy(update={"images": 1000}))
    found = online(backbone)
    features = extract(backbone, scenes(), Renderer(), 16)
    held = validation_part(features.labels, CONFIG.validation)
    train, validation = features[~held], features[held]
    (nearest,) = knn(train, validation, neighbours=(10,))
    read = [torch.cat([part.cls, part.mean_patch], 1) for part in (train, validation)]
    classifier = fit_logistic(read[0], train.labels, 10, l2=1e-2)
    logits = classifier(read[1])
    # views are rounded to 8 bits: single images near a border between classes may change sides
    assert found["online/knn_accuracy"] == pytest.approx(nearest.value("accuracy"), abs=0.05)
    right = (logits.argmax(1) == validation.labels).double().mean().item()
    assert found["online/linear_accuracy"] == pytest.approx(right, abs=0.05)
    loss = torch.nn.functional.cross_entropy(logits, validation.labels).item()
    assert found["online/linear_cross_entropy"] == pytest.approx(loss, rel=0.02)
    assert found["online/seconds"] > 0


def test_nothing_of_one_call_is_kept_for_the_next(backbone):
    online = probe()
    first = figures(online(backbone))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter))
    other = figures(online(backbone))
    assert other != first
    assert figures(probe()(backbone)) == other == figures(online(backbone))


def test_the_encoder_and_the_random_numbers_are_left_alone(backbone, snapshot):
    backbone.train()
    online = probe()
    before, random = snapshot(backbone), torch.get_rng_state()
    online(backbone)
    after = snapshot(backbone)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in before.items():
        assert torch.equal(after[name], value) if torch.is_tensor(value) else after[name] == value, name


def test_images_are_drawn_by_the_seed_without_repetition():
    first, again, other = probe(), probe(), probe(seed=4)
    assert torch.equal(first.views.pixels, again.views.pixels)
    assert not torch.equal(first.views.pixels, other.views.pixels)
    assert len(first.views) == 120
    assert len(torch.unique(first.views.pixels.flatten(1), dim=0)) == 120
    assert len(probe(CONFIG.model_copy(update={"images": 9999})).views) == 150


def test_views_of_the_very_size_stay_as_they_are():
    online = probe(source=scenes(size=32), size=32)
    images = torch.stack([scenes(size=32)[number].image for number in range(150)])
    assert torch.isin(online.views.pixels.flatten(1).sum(1), images.flatten(1).long().sum(1)).all()


def test_it_is_due_at_its_interval():
    online = probe()
    assert [step for step in range(1, 16) if online.due(step)] == [5, 10, 15]


def test_too_few_images_and_labels_are_told(squares):
    with pytest.raises(UserError, match="online kNN with k = 90 has 83 images"):
        probe(CONFIG.model_copy(update={"neighbours": 90}))
    with pytest.raises(UserError, match="has no class label"):
        probe(source=squares(30, unlabelled={4}))
    with pytest.raises(ValidationError):
        OnlineConfig(every=0)
