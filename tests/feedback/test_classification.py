import pytest
import torch
import torch.nn.functional as F

from vpt_vision.errors import UserError
from vpt_vision.feedback import build_feedback


def test_images_are_seen_whole(make_feedback, splits):
    images = splits.head.images[:5]
    seen = make_feedback().render(images, torch.device("cpu"))
    resized = F.interpolate(images.float() / 255, (16, 16), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(seen, (resized - mean) / std, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("features", ["cls", "cls+mean_patch"])
def test_the_head_is_the_best_one_for_the_backbone_in_eval_mode(make_feedback, backbone, splits, features):
    feedback = make_feedback(features=features)
    feedback.fit_head(backbone)
    backbone.eval()
    with torch.no_grad():
        answer = backbone(feedback.render(splits.head.images, torch.device("cpu")))
    read = answer.cls if features == "cls" else torch.cat([answer.cls, answer.patches.mean(1)], 1)

    # The documented objective has no slope left at the head.
    weight, bias = (tensor.double().requires_grad_() for tensor in feedback.head)
    logits = read.double() @ weight.T + bias
    deviation = read.double().std(0, correction=0)
    penalty = 0.1 / 2 * (weight * deviation).square().sum()
    objective = F.cross_entropy(logits, splits.head.labels) + penalty
    slopes = torch.autograd.grad(objective, (weight, bias))
    assert (slopes[0] / deviation).abs().max() < 1e-5 and slopes[1].abs().max() < 1e-5
    torch.testing.assert_close(
        feedback.loss(read, splits.head.labels).double(), F.cross_entropy(logits, splits.head.labels)
    )


def test_the_head_learns_what_can_be_learned(make_feedback, backbone):
    feedback = make_feedback()
    feedback.fit_head(backbone)
    assert feedback.heldout_loss(backbone) < 0.8 * torch.tensor(3.0).log()


@pytest.mark.parametrize("split", ["meta", "heldout"])
def test_other_splits_labels_leave_the_head_alone(make_feedback, backbone, splits, poisoned, split):
    clean, other = make_feedback(splits), make_feedback(poisoned(splits, split))
    for feedback in (clean, other):
        feedback.fit_head(backbone)
    assert torch.equal(clean.head.weight, other.head.weight)
    same = torch.equal(clean.heldout_loss(backbone), other.heldout_loss(backbone))
    assert same == (split == "meta")


def test_head_labels_decide_the_head(make_feedback, backbone, splits, poisoned):
    clean, other = make_feedback(splits), make_feedback(poisoned(splits, "head"))
    for feedback in (clean, other):
        feedback.fit_head(backbone)
    assert not torch.allclose(clean.head.weight, other.head.weight, atol=1e-2)


def test_fitting_leaves_no_trace_in_the_backbone(make_feedback, backbone, snapshot):
    backbone.vit.blocks[1].eval()  # modes that differ between parts come back as they were
    before = snapshot(backbone)
    random = torch.get_rng_state()
    feedback = make_feedback()
    feedback.fit_head(backbone)
    feedback.heldout_loss(backbone)
    assert torch.equal(random, torch.get_rng_state())
    after = snapshot(backbone)
    assert all(
        torch.equal(before[name], after[name])
        if isinstance(before[name], torch.Tensor)
        else before[name] is after[name]
        for name in before
    )


def test_the_state_is_the_head(make_feedback, backbone):
    feedback, fresh = make_feedback(), make_feedback()
    fresh.load_state_dict(feedback.state_dict())
    assert fresh.head is None
    with pytest.raises(RuntimeError, match="fit_head first"):
        fresh.heldout_loss(backbone)
    feedback.fit_head(backbone)
    fresh.load_state_dict(feedback.state_dict())
    assert torch.equal(fresh.heldout_loss(backbone), feedback.heldout_loss(backbone))


def test_a_meta_split_smaller_than_its_batch_is_refused(make_feedback):
    with pytest.raises(UserError, match=r"holds 40 examples, fewer than its batch of 42"):
        make_feedback(batch=42)


def test_built_from_a_source(make_feedback):
    class Coloured:
        classes = ("dark", "light")

        def __len__(self):
            return 50

        def __getitem__(self, index):
            from vpt_vision.data import Sample

            return Sample(torch.full((3, 20, 20), 200 * (index % 2), dtype=torch.uint8), index, index % 2)

    config = make_feedback().config.model_copy(update={"head_size": 20, "meta_size": 20, "heldout_size": 10})
    feedback = build_feedback(config, Coloured(), renderer=make_feedback().renderer, size=16, seed=0)
    assert feedback.classes == 2
    assert [len(split) for split in feedback.splits] == [20, 20, 10]
    assert all(torch.equal(split.images[:, 0, 0, 0] > 0, split.labels == 1) for split in feedback.splits)
