import pytest
import torch

from vpt_vision.designers import build_designer
from vpt_vision.designers.attention_masks import AttentionMasksDesigner, AttentionMasksDesignerConfig
from vpt_vision.designers.fixed import FixedDesigner
from vpt_vision.task import RenderedViews

PATCH = 4
PATCHES = 64


class Teacher:
    """A learner whose teacher attends as it is told."""

    def __init__(self, attention):
        self.attention = attention

    def cls_attention(self, global_views):
        return self.attention


@pytest.fixture
def attention():
    return torch.rand(2, 8, PATCHES, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pixels():
    return RenderedViews(torch.zeros(2, 8, 3, 32, 32), torch.zeros(3, 8, 3, 16, 16))


def refined(recipe, images, keys, pixels, attention, **settings):
    config = AttentionMasksDesignerConfig(kind="attention_masks", **settings)
    designer = build_designer(config, recipe, patch_size=PATCH)
    assert isinstance(designer, AttentionMasksDesigner) and not list(designer.parameters())
    return designer.refine(designer(images, keys), pixels, keys, Teacher(attention), 0.04)


def hidden_places(masks):
    """Each view's hidden patches, as sets."""
    return [set(row.nonzero().flatten().tolist()) for row in masks.hidden.flatten(0, 1)]


@pytest.mark.parametrize(("mode", "descending"), [("high", True), ("low", False)])
def test_hides_the_top_or_bottom_of_attention_and_as_many_as_the_recipe(
    recipe, images, keys, pixels, attention, mode, descending
):
    counts = FixedDesigner(recipe, PATCH)(images, keys).masks.hidden.sum(-1).flatten().tolist()
    assert 0 in counts and max(counts) > 10  # some views are not masked, some are
    result = refined(recipe, images, keys, pixels, attention, mode=mode)
    assert result.views is pixels
    for row, places, count in zip(
        attention.flatten(0, 1), hidden_places(result.task.masks), counts, strict=True
    ):
        order = sorted(range(PATCHES), key=lambda place: float(row[place]), reverse=descending)
        assert places == set(order[:count])


@pytest.mark.parametrize("hints", [0.1, 0.25, 1.0])
def test_hints_show_some_of_the_most_attended_again(recipe, images, keys, pixels, attention, hints):
    high = hidden_places(refined(recipe, images, keys, pixels, attention).task.masks)
    masks = refined(recipe, images, keys, pixels, attention, mode="hints", hints=hints).task.masks
    for row, before, after in zip(attention.flatten(0, 1), high, hidden_places(masks), strict=True):
        shown = before - after
        assert after <= before and len(shown) == int(hints * len(before))
        top = sorted(range(PATCHES), key=lambda place: -float(row[place]))[: int(hints * PATCHES)]
        assert shown <= set(top)


def test_hints_are_drawn_anew_at_each_step_evenly(recipe, images, keys, pixels, attention):
    shown = torch.zeros(PATCHES)
    drawn = 0
    for step in range(60):
        now = keys._replace(step=step)
        high = refined(recipe, images, now, pixels, attention).task.masks.hidden
        hints = refined(recipe, images, now, pixels, attention, mode="hints", hints=0.25).task.masks.hidden
        ranks = (-attention).argsort(-1).argsort(-1)
        shown.index_add_(0, ranks[high & ~hints], torch.ones(int((high & ~hints).sum())))
        drawn += int((high & ~hints).sum())
    # Of 16 places each is as likely, where all 16 are hidden; with fewer hidden the lower ranks are left out.
    assert shown[16:].sum() == 0
    assert (shown[:8] / drawn).std() < 0.02 and (shown[:16] > 0).all()


def test_is_packed_as_the_learner_reads_it(recipe, images, keys, pixels, attention):
    for mode in ("high", "hints", "low"):
        masks = refined(recipe, images, keys, pixels, attention, mode=mode, hints=0.3).task.masks
        assert masks.total == int(masks.hidden.sum())
        assert torch.equal(masks.index, masks.hidden.flatten().nonzero().flatten())


def test_a_view_depends_on_its_own_key_alone(recipe, images, keys, pixels, attention):
    whole = refined(recipe, images, keys, pixels, attention, mode="hints", hints=0.3).task.masks.hidden
    some = torch.tensor([5, 2])
    part = RenderedViews(pixels.global_views[:, some], pixels.local_views[:, some])
    few = refined(
        recipe,
        images[some],
        keys._replace(samples=keys.samples[some]),
        part,
        attention[:, some],
        mode="hints",
        hints=0.3,
    )
    assert torch.equal(few.task.masks.hidden, whole[:, some])
