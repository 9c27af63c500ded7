import pytest
import torch
import torch.nn.functional as F

from vpt_vision.learner.heads import HeadConfig, ProjectionHead


def head(**settings: object) -> ProjectionHead:
    torch.manual_seed(0)
    return ProjectionHead(12, HeadConfig(**{"prototypes": 20, "hidden": 16, "bottleneck": 8, **settings}))


@pytest.mark.parametrize("weight_norm", [True, False])
def test_equals_the_formula(weight_norm: bool) -> None:
    module = head(weight_norm=weight_norm).double()
    features = torch.randn(5, 12, dtype=torch.float64)
    first, second, third = (layer for layer in module.mlp if isinstance(layer, torch.nn.Linear))
    x = F.gelu(features @ first.weight.T + first.bias)
    x = F.gelu(x @ second.weight.T + second.bias)
    x = x @ third.weight.T + third.bias
    x = x / x.square().sum(1, keepdim=True).sqrt()
    prototypes = module.prototypes
    if weight_norm:
        prototypes = torch._weight_norm(prototypes, torch.ones(20, 1, dtype=torch.float64), 0)
    torch.testing.assert_close(module(features).rows, x @ prototypes.T)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_has_the_layers_asked_for(layers: int) -> None:
    module = head(layers=layers)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in module.mlp) == layers
    assert module(torch.randn(3, 12)).rows.shape == (3, 20)


def test_logits_are_fp32_and_exact_cosines_under_autocast() -> None:
    module = head()
    features = torch.randn(6, 12)
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(features).rows
        projected = module.mlp(features)
    assert logits.dtype == torch.float32 and projected.dtype == torch.bfloat16
    expected = F.normalize(projected.double(), dim=1) @ F.normalize(module.prototypes.double(), dim=1).T
    torch.testing.assert_close(logits.double(), expected, atol=1e-6, rtol=0)
