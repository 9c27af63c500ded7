import pytest
import torch

from vpt_vision.designers import FixedDesigner
from vpt_vision.errors import UserError
from vpt_vision.value.leash import Leash, LeashConfig


def total_kl(designer, images):
    return sum(kl.mean() for kl in designer.policy(images).kl().values())


def test_without_a_target_the_price_is_plain_kl(make_designer, images):
    policy = make_designer(apart=0.3).policy(images)
    leash = Leash(LeashConfig(), 0.5)
    expected = 0.5 * sum(kl.mean() for kl in policy.kl().values())
    for _ in range(3):
        torch.testing.assert_close(leash.price(policy), expected)
    assert leash.report()["leash/kl_weight"] == 0.5


@pytest.mark.parametrize("target", [0.05, 1e4])
def test_the_price_is_adapted_until_kl_meets_the_target(make_designer, images, target):
    """A designer that gains 1 for each nat of KL of its own accord, under the leash's price."""
    designer = make_designer(apart=0.1, surfaces=["crops"])
    leash = Leash(LeashConfig(kl_target=target, kl_rate=0.3), 0.01)
    optimiser = torch.optim.SGD(designer.heads.parameters(), lr=0.02)
    trace = []
    for _ in range(200):
        policy = designer.policy(images)
        optimiser.zero_grad()
        kl = sum(kl.mean() for kl in policy.kl().values())
        (leash.price(policy) - 3 * kl.sqrt()).backward()
        optimiser.step()
        trace.append(kl.detach())
    late = torch.stack(trace[-40:]).mean()
    if target < 1:
        assert late.item() == pytest.approx(target, rel=0.5)
        assert leash.report()["leash/kl_weight"] > 1
    else:  # it cannot come so far; the price falls and does no harm
        assert leash.report()["leash/kl_weight"] < 0.01


def test_the_bound_scales_the_outputs_back_and_no_further(make_designer, images):
    designer = make_designer(apart=2.0)
    free = total_kl(designer, images).detach()
    before = [parameter.clone() for parameter in designer.parameters()]
    report = Leash(LeashConfig(kl_bound=2 * float(free)), 0.0).pull_back(designer, images)
    assert report["leash/share"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, designer.parameters(), strict=True))
    for bound in (0.5 * float(free), 0.01, 1e-4):
        report = Leash(LeashConfig(kl_bound=bound), 0.0).pull_back(designer, images)
        assert 0 < report["leash/share"] < 1
        torch.testing.assert_close(report["leash/kl"], total_kl(designer, images).detach())
        assert 0.9 * bound < total_kl(designer, images) <= bound * (1 + 1e-5)


def test_the_floor_pulls_entropy_up(make_designer, images):
    designer = make_designer(apart=0.5)
    leash = Leash(LeashConfig(entropy_floor=0.05, entropy_weight=1.0), 0.0)
    optimiser = torch.optim.Adam(designer.parameters(), lr=0.02)
    before = {s: e.mean().item() for s, e in designer.policy(images).entropy().items()}
    low = {surface for surface, entropy in before.items() if entropy < -0.2}
    assert low
    for _ in range(120):
        optimiser.zero_grad()
        leash.price(designer.policy(images)).backward()
        optimiser.step()
    after = {s: e.mean().item() for s, e in designer.policy(images).entropy().items()}
    assert all(after[surface] > -0.06 for surface in low)
    # At the recipe nothing is below the floor.
    recipe = make_designer(apart=0.0)
    assert leash.price(recipe.policy(images)) == 0


def test_resumes(make_designer, images):
    policy = make_designer(apart=1.0).policy(images)
    first, second = (Leash(LeashConfig(kl_target=0.01), 0.1) for _ in range(2))
    first.price(policy)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.price(policy), second.price(policy))


@pytest.mark.parametrize("asked", [{"kl_target": 0.1}, {"kl_bound": 0.1}, {"entropy_floor": 0.1}])
def test_refuses_to_hold_what_has_no_law(asked, recipe, images):
    with pytest.raises(UserError, match=f"leash.{next(iter(asked))}.*no surface"):
        Leash(LeashConfig(**asked), 0.0, bends=False)
    with pytest.raises(UserError, match="scale_outputs"):
        Leash(LeashConfig(kl_bound=1.0), 0.0).pull_back(FixedDesigner(recipe, 8), images)


def test_a_target_needs_a_price_to_adapt():
    with pytest.raises(UserError, match="kl_weight"):
        Leash(LeashConfig(kl_target=0.1), 0.0)
