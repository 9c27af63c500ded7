from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from vpt_vision.errors import UserError
from vpt_vision.learner import weights
from vpt_vision.learner.backbone import Backbone, BackboneConfig

OPTIONS = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}


def config(path: object, **options: object) -> BackboneConfig:
    return BackboneConfig(name="vit_tiny_patch16_224", options={**OPTIONS, **options}, weights=str(path))


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS)
    return {name: torch.randn_like(tensor) for name, tensor in vit.state_dict().items()}


def test_every_tensor_of_a_timm_file_is_loaded_and_counted(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "vit.safetensors")
    backbone = Backbone(config(tmp_path / "vit.safetensors"))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in backbone.vit.state_dict().items())
    assert (
        backbone.weights_report
        == f"{len(tensors)} of {len(tensors)} tensors loaded from {tmp_path}/vit.safetensors"
    )


def test_a_mask_token_is_taken_where_the_file_has_one(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    token = torch.randn(1, 32)
    save_file({**tensors, "mask_token": token}, tmp_path / "vit.safetensors")
    assert torch.equal(Backbone(config(tmp_path / "vit.safetensors")).mask_token, token[0])


def test_a_classifier_in_the_file_is_left_out(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({**tensors, "head.weight": torch.zeros(5, 32)}, tmp_path / "vit.safetensors")
    assert torch.equal(Backbone(config(tmp_path / "vit.safetensors")).vit.cls_token, tensors["cls_token"])


def test_any_mismatch_is_refused_with_the_count(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    total = len(tensors)
    missing = {name: tensor for name, tensor in tensors.items() if name != "norm.bias"}
    for given, matched, what in [
        (missing, total - 1, "norm.bias is missing"),
        ({**tensors, "neck.weight": torch.zeros(2)}, total, "neck.weight is not in the model"),
        ({**tensors, "norm.bias": torch.zeros(5)}, total - 1, "norm.bias has shape [5], the model [32]"),
    ]:
        save_file(given, tmp_path / "vit.safetensors")
        with pytest.raises(UserError) as raised:
            Backbone(config(tmp_path / "vit.safetensors"))
        assert f"{matched} of the model's {total} tensors match" in str(raised.value)
        assert what in str(raised.value)


def test_another_architecture_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="of another architecture"):
        Backbone(config(tmp_path / "vit.safetensors", embed_dim=64))


def test_position_embedding_of_another_size_is_resampled_as_timm_does(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "vit.safetensors")
    options = {**OPTIONS, "img_size": 48}
    by_timm = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "vit.safetensors"), "num_classes": 0},
        **options,
    )
    backbone = Backbone(config(tmp_path / "vit.safetensors", img_size=48))
    torch.testing.assert_close(backbone.vit.pos_embed, by_timm.pos_embed)
    assert backbone.vit.pos_embed.shape[1] == 1 + 36


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no weights file at"):
        Backbone(config(tmp_path / "none.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="not readable as safetensors"):
        Backbone(config(tmp_path / "bad.safetensors"))
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match=r"no weights file at .*gone"):
        Backbone(config("embedded"))


def test_embedded_is_the_file_of_the_package(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tensors, tmp_path / "backbone.safetensors")
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path / "backbone.safetensors")
    assert torch.equal(Backbone(config("embedded")).vit.norm.weight, tensors["norm.weight"])


def test_pretrained_weights_that_timm_cannot_get_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network\nand no cache")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"timm cannot make vit_tiny_patch16_224 .*no network and no cache"):
        Backbone(config("timm"))
