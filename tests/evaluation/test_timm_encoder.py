import pytest
import timm
import torch
from safetensors.torch import save_file

from vpt_vision.errors import UserError
from vpt_vision.evaluation.encoder import encode
from vpt_vision.evaluation.timm_encoder import TimmEncoder, timm_renderer

# a convolutional net, one whose head widens the features, one with channels last, one with tokens
MODELS = {
    "resnet10t": 64,
    "mobilenetv3_small_050": 64,
    "swin_tiny_patch4_window7_224": 224,
    "cait_xxs24_224": 224,
}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_timm(name):
    encoder = TimmEncoder(name, "none").eval()
    size = MODELS[name]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (features,) = encode(encoder, images)
        torch.testing.assert_close(features.cls, encoder.model(images))  # num_classes=0: timm pools
        maps = encoder.model.forward_features(images)
    side = size // encoder.patch_size
    for row, column in ((0, 0), (side - 1, side // 2)):
        cell = features.patches[0, row * side + column]
        if maps.ndim == 3:
            expected = maps[0, maps.shape[1] - side**2 + row * side + column]
        else:
            expected = maps[0, row, column] if name.startswith("swin") else maps[0, :, row, column]
        assert torch.equal(cell, expected)


def test_pixels_are_normalised_as_the_weights_were_trained():
    model = timm.create_model("vit_tiny_patch16_224.augreg_in21k", num_classes=0)
    assert timm_renderer(model).mean == (0.5, 0.5, 0.5)
    assert timm_renderer(timm.create_model("resnet10t.c3_in1k")).interpolation == "bicubic"


def test_weights_of_a_file_with_a_classifier(tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model("resnet10t")
    save_file(whole.state_dict(), tmp_path / "resnet.safetensors")
    encoder = TimmEncoder("resnet10t", str(tmp_path / "resnet.safetensors"))
    assert torch.equal(encoder.model.conv1[0].weight, whole.conv1[0].weight)
    with pytest.raises(UserError, match="of another architecture"):
        TimmEncoder("resnet18", str(tmp_path / "resnet.safetensors"))


def test_what_timm_has_not_is_told():
    with pytest.raises(UserError, match=r"no model named 'resnet19'; the nearest name is 'resnet1"):
        TimmEncoder("resnet19", "none")
    encoder = TimmEncoder("swin_tiny_patch4_window7_224", "none")
    with pytest.raises(UserError, match=r"cannot encode images of 64 × 64 .* to its own, 224"):
        encoder(torch.zeros(1, 3, 64, 64))
