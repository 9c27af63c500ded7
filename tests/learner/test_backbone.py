import copy
from functools import lru_cache

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vpt_vision.errors import UserError
from vpt_vision.learner.backbone import Backbone, BackboneConfig

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
FAMILIES = {
    "vit_tiny_patch16_224": {"patch_size": 8, "img_size": 48},
    "vit_small_patch14_dinov2": {"img_size": 56},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_rope_mixed_224": {},  # rope differs from block to block
    "eva02_tiny_patch14_224": {},  # the final norm is timm's fc_norm
    "deit_tiny_distilled_patch16_224": {},  # a second prefix token
    "vit_medium_patch16_gap_240": {},  # no class token
}
POOLS_IN_ITS_OWN_WAY = {  # by more than the class token
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "deit_tiny_distilled_patch16_224",
}
every_family = pytest.mark.parametrize("name", FAMILIES)


@lru_cache
def backbone_of(name: str) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name=name, options={**SMALL, **FAMILIES[name]})).double().eval()
    with torch.no_grad():  # LayerScale and zero biases would hide mistakes
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def images_and_hidden(backbone: Backbone, side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    pixels = side * backbone.patch_size
    images = torch.randn(2, 3, pixels, pixels, generator=generator, dtype=torch.float64)
    return images, torch.rand(2, side * side, generator=generator) < 0.5


@every_family
def test_features_are_those_of_timm(name: str) -> None:
    backbone = backbone_of(name)
    for side in (2, 3):
        images, _ = images_and_hidden(backbone, side)
        features = backbone(images)
        assert features.cls.shape == (2, backbone.dim)
        assert features.patches.shape == (2, side * side, backbone.dim)
        tokens = backbone.vit.fc_norm(backbone.vit.forward_features(images))
        torch.testing.assert_close(features.patches, tokens[:, backbone.num_prefix_tokens :])
        if name in POOLS_IN_ITS_OWN_WAY:
            torch.testing.assert_close(features.cls, tokens[:, 0])
        else:
            torch.testing.assert_close(features.cls, backbone.vit(images))  # num_classes=0: timm pools


@every_family
def test_tail_after_trunk_is_forward(name: str) -> None:
    backbone = backbone_of(name)
    for side in (2, 3):
        images, hidden = images_and_hidden(backbone, side)
        whole = backbone(images, hidden)
        for tail_blocks in (1, 2, 3):
            in_two = backbone.tail(backbone.trunk(images, hidden, tail_blocks))
            assert torch.equal(in_two.cls, whole.cls)
            assert torch.equal(in_two.patches, whole.patches)


@every_family
def test_last_blocks_are_timms_intermediate_layers(name: str) -> None:
    backbone = backbone_of(name)
    images, _ = images_and_hidden(backbone, 3)
    found = backbone.last_blocks(images, 2)
    whole = backbone(images)
    assert torch.equal(found[-1].cls, whole.cls)
    assert torch.equal(found[-1].patches, whole.patches)
    layers = backbone.vit.forward_intermediates(
        images, indices=2, norm=True, output_fmt="NLC", intermediates_only=True
    )
    for features, patches in zip(found, layers, strict=True):
        torch.testing.assert_close(features.patches, backbone.vit.fc_norm(patches))


@every_family
def test_hidden_patches_are_replaced_after_the_patch_embedding(name: str) -> None:
    backbone = backbone_of(name)
    images, hidden = images_and_hidden(backbone, 3)
    by_hand = timm.create_model(
        name, num_classes=0, dynamic_img_size=True, **SMALL, **FAMILIES[name]
    ).double()
    by_hand.load_state_dict(backbone.vit.state_dict(), strict=True)
    embedded = by_hand.eval().patch_embed(images).clone()
    embedded.view(2, 9, -1)[hidden] = backbone.mask_token.detach()
    by_hand.patch_embed.forward = lambda images: embedded
    tokens = by_hand.fc_norm(by_hand.forward_features(images))
    torch.testing.assert_close(backbone(images, hidden).patches, tokens[:, backbone.num_prefix_tokens :])


def test_trunk_stops_where_the_tail_begins() -> None:
    backbone = backbone_of("vit_small_patch14_reg4_dinov2")
    images, _ = images_and_hidden(backbone, 2)
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(backbone.vit.blocks)
    ]
    trunk = backbone.trunk(images, None, 2)
    for hook in hooks:
        hook.remove()
    assert ran == [0]
    (patches, prefix), *_ = backbone.vit.forward_intermediates(
        images, indices=[0], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    torch.testing.assert_close(trunk.tokens, torch.cat([prefix, patches], dim=1))


def test_hidden_is_row_by_row_from_the_top_left() -> None:
    backbone = backbone_of("vit_tiny_patch16_224")
    images, _ = images_and_hidden(backbone, 3)
    hidden = torch.zeros(2, 9, dtype=torch.bool)
    hidden[:, 5] = True  # row 1, column 2
    changed = images.clone()
    changed[..., 8:16, 16:24] = 7.0
    assert torch.equal(backbone(images, hidden).cls, backbone(changed, hidden).cls)
    changed[..., 16:24, 8:16] = 7.0
    assert not torch.equal(backbone(images, hidden).cls, backbone(changed, hidden).cls)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_relaxed_mask_has_the_value_of_the_bool_mask_and_the_gradient_of_finite_differences(
    name: str,
) -> None:
    backbone = backbone_of(name)
    images, hidden = images_and_hidden(backbone, 2)
    relaxed = hidden.double().requires_grad_()
    for soft, hard in zip(backbone(images, relaxed), backbone(images, hidden), strict=True):
        assert torch.equal(soft, hard)
    direction = torch.randn(backbone.dim, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda shares: backbone(images, shares).cls @ direction, relaxed)


def test_relaxed_mask_has_the_value_of_the_bool_mask_under_autocast() -> None:
    backbone = copy.deepcopy(backbone_of("vit_tiny_patch16_224")).float()
    images, hidden = images_and_hidden(backbone, 3)
    with torch.autocast("cpu", torch.bfloat16):
        soft, hard = backbone(images.float(), hidden.float()), backbone(images.float(), hidden)
    assert torch.equal(soft.patches, hard.patches)


def test_parameters_given_to_the_tail_stand_in_for_this_call_alone() -> None:
    backbone = backbone_of("eva02_tiny_patch14_224")
    images, hidden = images_and_hidden(backbone, 2)
    trunk = backbone.trunk(images, hidden, 2)
    before = backbone.tail(trunk)
    parameters = backbone.tail_parameters(2)
    shifted = {name: tensor.detach() + 0.05 for name, tensor in parameters.items()}
    functional = backbone.tail(trunk, shifted)
    changed = copy.deepcopy(backbone)
    with torch.no_grad():
        for name, parameter in changed.tail_parameters(2).items():
            parameter.copy_(shifted[name])
    torch.testing.assert_close(functional.cls, changed(images, hidden).cls)
    assert torch.equal(backbone.tail(trunk).cls, before.cls)
    assert not torch.equal(functional.cls, before.cls)


def test_tail_parameters_are_the_last_blocks_and_the_final_norm_under_timm_names() -> None:
    backbone = backbone_of("vit_small_patch14_dinov2")
    expected = {
        name: parameter
        for name, parameter in backbone.vit.named_parameters()
        if name.startswith(("blocks.1.", "blocks.2.", "norm."))
    }
    parameters = backbone.tail_parameters(2)
    assert parameters.keys() == expected.keys()
    assert all(parameters[name] is expected[name] for name in expected)
    assert "fc_norm.weight" in backbone_of("eva02_tiny_patch14_224").tail_parameters(1)


def test_the_hook_of_a_copy_reads_the_copy() -> None:
    backbone = backbone_of("vit_tiny_patch16_224")
    images, hidden = images_and_hidden(backbone, 2)
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        twin.mask_token.add_(1.0)
    before = backbone(images, hidden)
    assert not torch.equal(twin(images, hidden).cls, before.cls)
    assert torch.equal(twin(images).cls, backbone(images).cls)


def test_the_mask_is_gone_after_the_call_even_if_it_failed() -> None:
    backbone = backbone_of("vit_tiny_patch16_224")
    images, hidden = images_and_hidden(backbone, 2)
    expected = backbone(images).cls
    backbone(images, hidden)
    assert torch.equal(backbone.vit(images), expected)
    with pytest.raises(RuntimeError):
        backbone(images, hidden[:, :3])
    assert torch.equal(backbone.vit(images), expected)


def test_state_dict_is_timm_and_the_mask_token() -> None:
    names = backbone_of("vit_small_patch16_dinov3").state_dict().keys()
    timm_names = timm.create_model("vit_small_patch16_dinov3", num_classes=0, **SMALL).state_dict().keys()
    assert names == {"mask_token", *(f"vit.{name}" for name in timm_names)}


def test_compiles_as_one_graph(small_backbone: BackboneConfig) -> None:
    backbone = Backbone(small_backbone).eval()
    images, hidden = torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.5
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images, hidden).cls, backbone(images, hidden).cls)


def test_drop_path_acts_in_training_alone(small_backbone: BackboneConfig) -> None:
    backbone = Backbone(small_backbone.model_copy(update={"drop_path": 0.9}))
    images = torch.randn(8, 3, 32, 32)
    trained = backbone.train()(images).cls
    assert not torch.equal(trained, backbone(images).cls)
    assert torch.equal(backbone.eval()(images).cls, backbone(images).cls)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "vit_smal_patch16_224"}, "nearest name is 'vit_small_patch16_224'"),
        ({"name": "resnet50"}, "no ViT named 'resnet50'"),
        ({"options": {"embed_dims": 8}}, "timm cannot make vit_small_patch16_224 .*embed_dims"),
        ({"options": {"embed_dim": 33, "depth": 1}}, "timm cannot make"),
    ],
)
def test_models_that_cannot_be_made_are_one_sentence(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        Backbone(BackboneConfig.model_validate(config))
    assert "\n" not in str(raised.value)


def test_options_that_the_backbone_sets_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_classes cannot be set here"):
        BackboneConfig(options={"num_classes": 10})


@pytest.mark.parametrize(
    ("pixels", "message"), [(20, "whole number"), (4, "smaller than the backbone's patch")]
)
def test_views_that_patches_do_not_tile_are_refused(pixels: int, message: str) -> None:
    backbone = backbone_of("vit_tiny_patch16_224")
    with pytest.raises(UserError, match=message):
        backbone(torch.zeros(1, 3, pixels, pixels, dtype=torch.float64))


@pytest.mark.parametrize("tail_blocks", [0, 4])
def test_a_tail_longer_than_the_backbone_is_refused(tail_blocks: int) -> None:
    with pytest.raises(UserError, match="has 3 blocks"):
        backbone_of("vit_tiny_patch16_224").tail_parameters(tail_blocks)


def test_gradient_reaches_the_mask_token() -> None:
    backbone = backbone_of("vit_tiny_patch16_224")
    images, hidden = images_and_hidden(backbone, 2)
    (gradient,) = torch.autograd.grad(backbone(images, hidden).cls.sum(), backbone.mask_token)
    assert gradient.abs().sum() > 0
    assert isinstance(backbone.mask_token, nn.Parameter)


@every_family
def test_attention_is_that_of_the_fused_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against softmax(q kᵀ / √d) of the last call of the fused kernel in timm's own forward pass."""
    backbone = backbone_of(name)
    images, _ = images_and_hidden(backbone, 3)
    if backbone.vit.cls_token is None:
        with pytest.raises(UserError, match="class token to patches"):
            backbone.attend(images)
        return
    calls = []
    fused = nn.functional.scaled_dot_product_attention

    def record(q: Tensor, k: Tensor, v: Tensor, **rest: object) -> Tensor:
        calls.append((q, k))
        return fused(q, k, v, **rest)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", record)
    tokens = backbone.vit.fc_norm(backbone.vit.forward_features(images))
    assert len(calls) == backbone.depth  # every block's attention is fused
    q, k = calls[-1]
    weights = torch.softmax(q[:, :, 0, None] @ k.mT / q.shape[-1] ** 0.5, dim=-1)[:, :, 0]
    expected = weights[..., backbone.num_prefix_tokens :].mean(1)

    calls.clear()
    features, attention = backbone.attend(images)
    assert len(calls) == backbone.depth  # and stays so
    torch.testing.assert_close(attention.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(features.patches, tokens[:, backbone.num_prefix_tokens :])
    assert not backbone.vit.blocks[-1].attn._forward_pre_hooks
