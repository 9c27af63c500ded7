import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from images import pack, packed
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image
from sklearn.decomposition import PCA

from vpt_kernels import Photometrics
from vpt_vision.designers import Refined
from vpt_vision.errors import UserError
from vpt_vision.evaluation.pictures import crops_and_masks, curves, patch_pca
from vpt_vision.evaluation.pictures.crops_and_masks import _words
from vpt_vision.evaluation.pictures.curves import designer_panels, online_panels, series
from vpt_vision.evaluation.pictures.patch_pca import _align, project
from vpt_vision.evaluation.pictures.style import BLUE, ORANGE, VERMILION
from vpt_vision.task import Masks, RenderedViews, Renderer, Targets, Task, Views
from vpt_vision.training.log import read_log

HIDDEN = "#B4B4B4"


def share(path, colour: str) -> float:
    """Share of a picture's pixels that are of `colour`."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return (np.abs(pixels - wanted).max(-1) <= 3).mean()


def views(count: int, images: int, size: int, box: list[float]) -> Views:
    return Views(
        size,
        torch.tensor(box).expand(count, images, 4).clone(),
        torch.ones(count, images, dtype=torch.bool),
        Photometrics.neutral((count, images), torch.device("cpu")),
    )


def task(images: int, *, hidden: int = 0, local_views: int = 2) -> Task:
    mask = torch.zeros(2, images, 16, dtype=torch.bool)
    mask[..., :hidden] = True
    return Task(
        views(2, images, 16, [0.0, 1.0, 17.0, 18.5]),
        views(local_views, images, 8, [6.0, 6.0, 8.0, 8.0]),
        Masks.of(mask, int(mask.sum())),
    )


def draw(images, tasks, path):
    renderer = Renderer()
    crops_and_masks(
        images,
        {title: Refined(of, renderer(images, of)) for title, of in tasks.items()},
        path,
        renderer=renderer,
    )


@pytest.fixture
def images():
    return pack(torch.full((2, 3, 20, 20), 30, dtype=torch.uint8))


def test_boxes_are_drawn_in_their_colours_and_hidden_patches_greyed(images, tmp_path):
    bare, crops, masks = (tmp_path / name for name in ("bare.png", "crops.png", "new/masks.png"))
    draw(images, {"early": task(2, local_views=0)}, bare)
    draw(images, {"early": task(2)}, crops)
    draw(images, {"early": task(2, hidden=8), "late": task(2, hidden=8)}, masks)
    legend = share(bare, ORANGE)
    assert share(crops, ORANGE) > 2 * legend
    assert share(bare, BLUE) > 0.003
    assert share(masks, HIDDEN) > 0.05 > 10 * share(crops, HIDDEN)
    with Image.open(crops) as one, Image.open(masks) as two:
        assert two.width == pytest.approx(2 * one.width, abs=2)


def test_the_hidden_patches_are_the_ones_that_are_greyed(images, tmp_path):
    """The upper half of each view is hidden, so grey stands above dark there."""
    draw(images[:1], {"early": task(1, hidden=8)}, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    view = pixels[:, pixels.shape[1] * 3 // 8]  # a column of pixels through global view 1, the second of four
    dark = np.flatnonzero(np.abs(view - 30) <= 3)
    grey = np.flatnonzero(np.abs(view - 0xB4) <= 12)
    assert len(grey) > 30 and len(dark) > 60
    assert np.median(grey) < dark.min()


def test_views_are_drawn_as_the_student_is_shown_them(images, tmp_path):
    """Pixels that a designer changed, not those that the task alone would give."""
    one, renderer = task(2), Renderer()
    views = renderer(images, one)
    white = (1 - torch.tensor(renderer.mean)) / torch.tensor(renderer.std)
    white = white[:, None, None].expand_as(views.global_views)
    shown = Refined(one, RenderedViews(torch.cat([white, views.global_views]), views.local_views))
    crops_and_masks(images, {"plain": Refined(one, views)}, tmp_path / "plain.png", renderer=renderer)
    crops_and_masks(images, {"plain": shown}, tmp_path / "white.png", renderer=renderer)
    plain, changed = (share(tmp_path / name, "#1E1E1E") for name in ("plain.png", "white.png"))
    assert plain > 2.5 * changed > 0.05  # of three dark squares a row the source is left


def test_local_views_are_drawn_too_and_none_where_there_are_none(images, tmp_path):
    renderer, name = Renderer(), tmp_path / "one.png"
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    red = (red - torch.tensor(renderer.mean)[:, None, None]) / torch.tensor(renderer.std)[:, None, None]
    for count in (3, 0):
        one = task(2, local_views=count)
        rendered = renderer(images, one)
        shown = Refined(one, rendered._replace(local_views=red.expand_as(rendered.local_views)))
        crops_and_masks(images, {"plain": shown}, name, renderer=renderer)
        assert (share(name, "#FF0000") > 0.02) == (count > 0)


def test_hidden_patches_have_the_colour_of_their_weight(images, tmp_path):
    one = task(2, hidden=8)
    tokens = torch.ones(2, 2, 16)
    tokens[..., :4], tokens[..., 4:8] = 2.0, 0.5
    weighed = replace(one, targets=Targets(token_weights=tokens))
    draw(images, {"plain": one}, tmp_path / "plain.png")
    draw(images, {"weighed": weighed}, tmp_path / "weighed.png")
    light, heavy = (to_hex(colormaps["RdBu_r"](end)) for end in (0.0, 1.0))
    for colour in (light, heavy):
        assert share(tmp_path / "weighed.png", colour) > 0.01 > 20 * share(tmp_path / "plain.png", colour)
    assert share(tmp_path / "weighed.png", HIDDEN) < 0.2 * share(tmp_path / "plain.png", HIDDEN)


def test_what_targets_ask_of_an_image_is_told():
    two = torch.tensor([0.5, 1.5])
    targets = Targets(sample_weights=two, temperature=two, mix=torch.tensor([[1.0, 2], [1, 4], [1, 6]]))
    words = _words(replace(task(2), targets=targets), 1)
    assert words == [
        "image's weight 1.50",
        "temperature × 1.50",
        "DINO 0.50 : iBOT 1.00",
        ": Gram 1.50",
    ]
    assert _words(task(2), 1) == []


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_curves_draw_every_run_and_a_value_panel_only_where_there_is_value(tmp_path):
    plain = write(tmp_path / "a.jsonl", [{"step": s, "loss": 9 - s / 50, "value": None} for s in range(60)])
    valued = write(
        tmp_path / "b.jsonl",
        [{"step": s, "loss": 8 - s / 50, "value": s / 9 if s % 5 == 0 else None} for s in range(60)],
    )
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    curves({"fixed recipe": plain}, one)
    curves({"fixed recipe": plain, "learned designer": valued}, two)
    assert share(one, BLUE) > 0.002 and share(one, VERMILION) == 0
    assert share(two, BLUE) > 0.001 and share(two, VERMILION) > 0.002
    with Image.open(one) as single, Image.open(two) as double:
        assert double.height > 1.5 * single.height


def test_curves_of_a_single_point_and_of_nan(tmp_path):
    rows = [{"step": 5, "loss": 2.0, "value": None}, {"step": 6, "loss": math.nan}]
    file = write(tmp_path / "a.jsonl", rows)
    curves({"one": file}, tmp_path / "one.png")
    assert share(tmp_path / "one.png", BLUE) > 0
    steps, loss = series(read_log(file), "loss")
    assert (steps.tolist(), loss.tolist()) == ([5], [2.0])
    assert series(read_log(file), "value")[0].size == 0


def test_every_logged_figure_of_the_designer_has_its_panel_and_no_other(tmp_path):
    """Value and cosine on both splits, losses, KL and entropy of every surface, guard."""
    figures = ["value", "heldout/value", "cosine", "heldout/cosine", "meta_loss", "heldout_loss", "kl/crops"]
    figures += ["kl/masks", "entropy/crops", "guard/interventions"]
    figures += ["meta_loss/breed", "heldout_loss/breed"]
    lines = [{"step": step, "loss": 1.0, **dict.fromkeys(figures, 0.1 * step)} for step in range(30)]
    panels = designer_panels([lines])
    shown = [key for panel in panels for key in panel.figures if key in figures]
    assert sorted(shown) == sorted(
        set(figures) - {"meta_loss/breed", "heldout_loss/breed"}
    )  # one task: the same
    assert len(panels) == len(shown) - 3  # value, cosine and loss show both splits at once
    lines[3]["meta_loss/parts"] = 1.0
    assert len(designer_panels([lines])) == len(panels) + 2
    assert designer_panels([[{"step": 1, "loss": 2.0, "value": None}]]) == []
    assert [panel.title for panel in online_panels([[{"step": 1, "online/knn_accuracy": 0.5}]])] == [
        "knn accuracy"
    ]

    curves({"run": write(tmp_path / "a.jsonl", lines)}, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        assert image.height > 0.9 * image.width
    assert share(tmp_path / "one.png", BLUE) > 0.005


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        ("", "holds no logged step"),
        ('{"step": 1, "loss": 2}\n{"ste', "line 2 is not a JSON object"),
        ('{"loss": 2}\n', "line 1 is not a JSON object with a step"),
        ("3\n", "line 1 is not a JSON object"),
    ],
)
def test_bad_logs_are_refused_in_one_sentence(tmp_path, content, sentence):
    file = tmp_path / "metrics.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        curves({"run": file}, tmp_path / "out.png")


def test_projection_agrees_with_scikit_learn():
    patches = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)
    found = project(patches)
    reference = PCA(3, svd_solver="full").fit(patches.double().reshape(60, 7).numpy())
    expected = torch.from_numpy(reference.transform(patches.double().reshape(60, 7).numpy())).view(3, 4, 5, 3)
    torch.testing.assert_close(_align(found.components, expected), expected)
    assert found.explained == pytest.approx(reference.explained_variance_ratio_.sum())


def test_projection_of_fewer_dimensions_than_colours_and_of_constant_features():
    narrow = project(torch.randn(1, 3, 3, 2))
    assert narrow.explained == pytest.approx(1)
    assert not narrow.components[..., 2].any()
    assert not project(torch.ones(1, 3, 3, 5)).components.any()


def test_signs_follow_the_first_model_whatever_its_grid():
    components = torch.randn(2, 4, 4, 3, dtype=torch.float64)
    flipped = components * torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(_align(flipped, components), components)
    coarse = torch.randn(2, 2, 2, 3, dtype=torch.float64)
    smooth = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(_align(-smooth, coarse), smooth)


def test_patch_pca_shows_equal_models_alike_and_leaves_their_mode(backbone, tmp_path):
    backbone.train()
    images = packed([(20, 20), (20, 31)])
    path = tmp_path / "pca.png"
    patch_pca({"start": backbone, "end": backbone}, images, path, renderer=Renderer(), size=32)
    assert backbone.training
    with Image.open(path) as image:
        assert image.height > image.width / 2
        pixels = np.asarray(image.convert("RGB")).astype(int)
    colourful = (pixels.max(-1) - pixels.min(-1) > 40).mean()
    assert colourful > 0.2
