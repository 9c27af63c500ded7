import copy

import pytest
import torch
from torch import nn

from vpt_vision import UserError
from vpt_vision.value import EstimatorsConfig, adamw_step


@pytest.fixture
def trained():
    """A model after many steps of AdamW on noise whose size differs from weight to weight."""
    torch.manual_seed(0)
    model = nn.ParameterDict({"a": nn.Parameter(torch.randn(3, 4)), "b": nn.Parameter(torch.randn(5))})
    groups = [
        {"params": [model["a"]], "lr_scale": 0.5, "lr": 0.5e-3},
        {"params": [model["b"]], "lr_scale": 1.0, "lr": 1e-3},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.9999), weight_decay=0.0)
    sizes = {name: 0.1 + torch.rand_like(p) for name, p in model.items()}
    for _ in range(4000):
        for name, parameter in model.items():
            parameter.grad = sizes[name] * torch.randn_like(parameter)
        optimiser.step()
    return model, optimiser


def test_is_what_a_gradient_does_to_the_weights_in_this_step_and_the_later_ones(trained):
    """Two runs on that differ in one gradient, by g: in the end they stand apart by lr P g."""
    model, optimiser = trained
    extra = {name: 1e-2 * torch.randn_like(parameter) for name, parameter in model.items()}
    ends = []
    for nudge in (0.0, 1.0):
        run = copy.deepcopy(model)
        again = torch.optim.AdamW(
            [{"params": [run["a"]]}, {"params": [run["b"]]}], betas=(0.9, 0.9999), weight_decay=0.0
        )
        again.load_state_dict(copy.deepcopy(optimiser.state_dict()))
        for number in range(60):  # 0.9^60 of the first moment is left
            for name, parameter in run.items():
                parameter.grad = nudge * extra[name] * (number == 0)
            again.step()
        ends.append(run)
    step = adamw_step(extra, dict(model.items()), optimiser)
    for name in step:
        moved = (ends[0][name] - ends[1][name]).detach() / 1e-3
        torch.testing.assert_close(moved, step[name], rtol=0.05, atol=2e-3)


def test_what_has_never_moved_has_no_step(trained):
    model, _ = trained
    fresh = torch.optim.AdamW(model.values())
    step = adamw_step({"a": torch.ones(3, 4), "b": torch.ones(5)}, dict(model.items()), fresh)
    assert not any(value.any() for value in step.values())


def test_the_step_measures_value_of_it(make_step, images, keys):
    plain = make_step(burn_in=100)
    value = plain(images, keys, 0.07)["value"]
    with pytest.raises(UserError, match="preconditioner is adamw"):
        make_step(burn_in=100, preconditioner="adamw")
    optimiser = torch.optim.AdamW(plain.learner.student.parameters())
    for parameter in plain.learner.student.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)  # the same second moment everywhere: P is a number
    before = [parameter.detach().clone() for parameter in plain.learner.student.parameters()]
    optimiser.step()
    with torch.no_grad():
        for parameter, old in zip(plain.learner.student.parameters(), before, strict=True):
            parameter.copy_(old)
            parameter.grad = None
    stepped = make_step(burn_in=100, preconditioner="adamw", learner_optimiser=optimiser)
    stepped.learner = plain.learner
    torch.testing.assert_close(stepped(images, keys, 0.07)["value"], value / 0.5, rtol=1e-3, atol=1e-4)


def test_an_estimator_that_cannot_work_is_refused():
    everything = frozenset({"crops", "photometrics", "masks", "targets"})
    with pytest.raises(UserError, match="not drawn"):
        EstimatorsConfig(targets="score").plan(everything)
    EstimatorsConfig(targets="score").plan(frozenset({"crops"}))
    with pytest.raises(UserError, match="one way"):
        EstimatorsConfig(masks="exact").plan(everything)
    plan = EstimatorsConfig(crops="exact", masks="exact", targets="exact", photometrics="score").plan(
        everything
    )
    assert plan.exact and plan.followed == {"crops", "masks", "targets"}
    assert plan.searched == {"score": {"photometrics"}}
