import pytest
import torch
import torch.nn.functional as F
from images import first_pixels

from vpt_vision.data import Sample
from vpt_vision.errors import UserError
from vpt_vision.feedback import ClassificationFeedback, Examples, all_features, whole_loss
from vpt_vision.learner import Features
from vpt_vision.logistic import fit_logistic


def test_images_are_seen_whole(make_feedback, splits):
    images = splits.head.images[:5]
    seen = make_feedback().images("head", torch.arange(5), torch.device("cpu"))
    dense = torch.stack(list(images)).permute(0, 3, 1, 2)
    resized = F.interpolate(dense.float() / 255, (16, 16), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(seen, (resized - mean) / std, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("features", ["cls", "cls+mean_patch"])
def test_the_head_is_the_best_one_for_the_backbone_in_eval_mode(
    make_feedback, backbone, splits, fit, features
):
    feedback = make_feedback(features=features)
    fit(feedback, backbone)
    backbone.eval()
    with torch.no_grad():
        answer = backbone(feedback.images("head", torch.arange(48), torch.device("cpu")))
    read = answer.cls if features == "cls" else torch.cat([answer.cls, answer.patches.mean(1)], 1)

    # The documented objective has no slope left at the head.
    weight, bias = (tensor[0].double().requires_grad_() for tensor in feedback.heads)
    logits = read.double() @ weight.T + bias
    deviation = read.double().std(0, correction=0)
    penalty = 0.1 / 2 * (weight * deviation).square().sum()
    objective = F.cross_entropy(logits, splits.head.labels) + penalty
    slopes = torch.autograd.grad(objective, (weight, bias))
    assert (slopes[0] / deviation).abs().max() < 1e-5 and slopes[1].abs().max() < 1e-5
    torch.testing.assert_close(
        feedback.loss(answer, "head", torch.arange(48)).double(), F.cross_entropy(logits, splits.head.labels)
    )


def test_the_head_learns_what_can_be_learned(make_feedback, backbone, fit):
    feedback = make_feedback()
    fit(feedback, backbone)
    assert whole_loss(feedback, backbone, "heldout") < 0.8 * torch.tensor(3.0).log()


@pytest.mark.parametrize("split", ["meta", "heldout"])
def test_other_splits_labels_leave_the_head_alone(make_feedback, backbone, splits, poisoned, split, fit):
    clean, other = make_feedback(splits), make_feedback(poisoned(splits, split))
    for feedback in (clean, other):
        fit(feedback, backbone)
    assert torch.equal(clean.heads.weight, other.heads.weight)
    same = torch.equal(whole_loss(clean, backbone, "heldout"), whole_loss(other, backbone, "heldout"))
    assert same == (split == "meta")


def test_head_labels_decide_the_head(make_feedback, backbone, splits, poisoned, fit):
    clean, other = make_feedback(splits), make_feedback(poisoned(splits, "head"))
    for feedback in (clean, other):
        fit(feedback, backbone)
    assert not torch.allclose(clean.heads.weight, other.heads.weight, atol=1e-2)


def test_fitting_leaves_no_trace_in_the_backbone(make_feedback, backbone, snapshot, fit):
    backbone.vit.blocks[1].eval()  # modes that differ between parts come back as they were
    before = snapshot(backbone)
    random = torch.get_rng_state()
    feedback = make_feedback()
    fit(feedback, backbone)
    whole_loss(feedback, backbone, "heldout")
    assert torch.equal(random, torch.get_rng_state())
    after = snapshot(backbone)
    assert all(
        torch.equal(before[name], after[name])
        if isinstance(before[name], torch.Tensor)
        else before[name] is after[name]
        for name in before
    )


def test_the_state_is_the_head(make_feedback, backbone, fit):
    feedback, fresh = make_feedback(), make_feedback()
    fresh.load_state_dict(feedback.state_dict())
    assert fresh.heads is None
    with pytest.raises(RuntimeError, match="call fit first"):
        whole_loss(fresh, backbone, "heldout")
    fit(feedback, backbone)
    fresh.load_state_dict(feedback.state_dict())
    assert torch.equal(whole_loss(fresh, backbone, "heldout"), whole_loss(feedback, backbone, "heldout"))


def test_a_meta_split_smaller_than_its_batch_is_refused(make_feedback):
    with pytest.raises(UserError, match=r"holds 40 examples, fewer than its batch of 42"):
        make_feedback(batch=42)


class Coloured:
    """Plain images of two grey levels, which are their classes."""

    classes = ("dark", "light")

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return Sample(torch.full((20, 20, 3), 200 * (index % 2), dtype=torch.uint8), index, index % 2)


def test_built_from_a_source(make_feedback):
    config = make_feedback().config.model_copy(update={"head_size": 20, "meta_size": 20, "heldout_size": 10})
    feedback = ClassificationFeedback.from_source(
        config, Coloured(), renderer=make_feedback().renderer, size=16, seed=0
    )
    assert feedback.classes == 2
    assert [len(split) for split in feedback.splits] == [20, 20, 10]
    for split in feedback.splits:
        assert torch.equal(first_pixels(split.images)[:, 0] > 0, split.labels == 1)


def test_sources_without_labels_are_told(make_feedback):
    class Unlabelled(Coloured):
        def __getitem__(self, index):
            return Sample(torch.zeros(20, 20, 3, dtype=torch.uint8), index)

    class Nameless(Unlabelled):
        classes = None

    for source, sentence in ((Nameless(), "no class labels"), (Unlabelled(), r"image \d+ .* has no label")):
        with pytest.raises(UserError, match=sentence):
            ClassificationFeedback.from_source(
                make_feedback().config, source, renderer=make_feedback().renderer, size=16, seed=0
            )


def test_bad_labels_are_told(make_feedback, splits):
    wrong = splits._replace(meta=Examples(splits.meta.images, splits.meta.labels + 1))
    with pytest.raises(UserError, match=r"label 3 in the feedback examples is outside 0\.\.2"):
        make_feedback(wrong)
    twos = splits._replace(head=splits.head[splits.head.labels < 2])
    with pytest.raises(UserError, match=r"class 2 has no example among the 32 of the feedback's head"):
        make_feedback(twos)


class TestFolds:
    """Head and meta examples pooled, and each judged by a head that has not seen it."""

    def test_each_example_is_judged_by_a_head_fitted_on_the_other_folds(self, make_feedback, backbone, fit):
        feedback = make_feedback(folds=4)
        fit(feedback, backbone)
        features = all_features(feedback, backbone, "meta")
        labels = feedback.splits.meta.labels
        assert len(labels) == 88 and feedback.count("head") == 88
        for index in (0, 5, 86):
            others = torch.arange(88) % 4 != index % 4
            head = fit_logistic(features.cls[others], labels[others], 3, l2=0.1)
            loss = F.cross_entropy(head(features.cls[[index]]), labels[[index]])
            one = Features(features.cls[[index]], features.patches[[index]])
            assert feedback.loss(one, "meta", torch.tensor([index])).item() == pytest.approx(
                loss.item(), rel=1e-3
            )

    def test_the_held_out_are_judged_by_a_head_fitted_on_all(self, make_feedback, backbone, fit):
        feedback = make_feedback(folds=2)
        fit(feedback, backbone)
        pool = all_features(feedback, backbone, "head")
        head = fit_logistic(pool.cls, feedback.splits.head.labels, 3, l2=0.1)
        heldout = all_features(feedback, backbone, "heldout")
        expected = F.cross_entropy(head(heldout.cls), feedback.splits.heldout.labels)
        torch.testing.assert_close(whole_loss(feedback, backbone, "heldout"), expected, rtol=1e-3, atol=1e-4)

    def test_a_class_that_one_fold_holds_alone_is_told(self, make_feedback, splits):
        rare = splits.head.labels.clone()
        rare[rare == 2] = 0
        rare[7] = 2
        rest = splits.meta[splits.meta.labels < 2]
        lonely = splits._replace(head=Examples(splits.head.images, rare), meta=rest)
        make_feedback(lonely)
        with pytest.raises(UserError, match="class 2 has no example among the"):
            make_feedback(lonely, folds=3)
