import pytest
import torch

from vpt_vision.designers.unet import UNet


@pytest.mark.parametrize("size", [8, 21, 24, 40, 64, 96])
@pytest.mark.parametrize("whole_view", [False, True])
def test_gives_a_map_of_the_views_size_for_any_size(size, whole_view):
    net = UNet(size, 8, 3, whole_view=whole_view)
    assert net(torch.randn(2, 3, size, size)).shape == (2, 3, size, size)


@pytest.mark.parametrize(
    ("size", "down", "up"),
    [  # channels of the levels of ADIOS's masking network at its sizes of 64, 96 and 224 pixels, for width 8
        (64, [8, 8, 16, 16, 16], [16, 16, 8, 8, 8]),
        (96, [8, 8, 16, 16, 16], [16, 16, 8, 8, 8]),
        (224, [8, 8, 8, 16, 16, 16], [16, 16, 8, 8, 8, 8]),
    ],
)
def test_has_the_published_shape(size, down, up):
    net = UNet(size, 8, 6, whole_view=True)
    assert [block[0].out_channels for block in net.down] == down
    assert [block[0].out_channels for block in net.up] == up
    side = size // 2 ** (len(down) - 1)
    assert net.middle[1].in_features == 16 * side**2


def test_with_the_mlp_every_pixel_sees_the_whole_view():
    torch.manual_seed(0)
    views = torch.randn(1, 3, 64, 64, requires_grad=True)
    net = UNet(64, 8, 1, whole_view=True)
    reached = torch.autograd.grad(net(views)[0, 0, 0, 0], views)[0].abs().sum(1)[0]
    assert (reached > 0).all()


def test_images_do_not_see_each_other():
    torch.manual_seed(0)
    net, views = UNet(24, 8, 2, whole_view=True), torch.randn(3, 3, 24, 24)
    torch.testing.assert_close(net(views)[1:], net(views[1:]))
