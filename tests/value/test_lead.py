import copy

import pytest
import torch
import torch.nn.functional as F

from vpt_vision.errors import UserError
from vpt_vision.feedback import all_features, feedback_gradient
from vpt_vision.value.lead import led


@pytest.fixture
def moved(make_learner):
    """A learner and its AdamW of two groups, after three steps; the last norm's bias has not moved."""
    learner = make_learner()
    parameters = dict(learner.student.backbone.named_parameters())
    still = learner.student.backbone.tail_parameters(2)["norm.bias"]
    first = [p for name, p in parameters.items() if "blocks.2" in name]
    other = [p for name, p in parameters.items() if "blocks.2" not in name]
    adamw = torch.optim.AdamW(
        [{"params": first, "lr": 3e-3, "weight_decay": 0.1}, {"params": other}], lr=1e-3, betas=(0.8, 0.95)
    )
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        for parameter in parameters.values():
            parameter.grad = None if parameter is still else torch.randn(parameter.shape, generator=generator)
        adamw.step()
    return learner, adamw


def test_it_stands_where_a_step_without_gradient_leads(moved):
    learner, adamw = moved
    tail = learner.student.backbone.tail_parameters(2)
    before = {name: parameter.detach().clone() for name, parameter in tail.items()}
    with led(tail, adamw):
        there = {name: parameter.detach().clone() for name, parameter in tail.items()}
    assert all(torch.equal(parameter, before[name]) for name, parameter in tail.items())
    state = copy.deepcopy(adamw.state_dict())
    for parameter in tail.values():
        parameter.grad = None if parameter.grad is None else torch.zeros_like(parameter)
    adamw.step()
    for name, parameter in tail.items():
        torch.testing.assert_close(there[name], parameter.detach())
        assert torch.equal(there[name], before[name]) == (name == "norm.bias")
    assert state["param_groups"] == adamw.state_dict()["param_groups"]


def test_autocast_sees_the_weights_as_they_stand(moved):
    learner, adamw = moved
    tail = learner.student.backbone.tail_parameters(2)
    name = next(name for name, parameter in tail.items() if parameter.ndim == 2)
    eye = torch.eye(tail[name].shape[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        here = F.linear(eye, tail[name])
        with led(tail, adamw):
            there = F.linear(eye, tail[name])
            assert torch.equal(there, tail[name].T.to(torch.bfloat16))
        again = F.linear(eye, tail[name])
    assert torch.equal(here, again) and not torch.equal(here, there)


def test_what_fails_there_still_comes_back(moved):
    learner, adamw = moved
    tail = learner.student.backbone.tail_parameters(2)
    before = {name: parameter.detach().clone() for name, parameter in tail.items()}
    with pytest.raises(RuntimeError, match="here"), led(tail, adamw):
        raise RuntimeError("here")
    assert all(torch.equal(parameter, before[name]) for name, parameter in tail.items())


def test_u_is_taken_there_with_a_head_fitted_there(moved, make_step, images, keys):
    learner, adamw = moved
    step = make_step(learner_optimiser=adamw, lead=True, burn_in=100)
    step.learner = learner
    backbone = learner.student.backbone
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    step(images, keys, 0.07)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    gradient = step.feedback_gradient
    ((name, entry),) = gradient.feedback.tasks.items()
    with led(backbone.tail_parameters(2), adamw):
        entry.task.fit(all_features(entry.task, backbone, "head"))
        halves = [
            feedback_gradient(entry.task, backbone, "meta", gradient._draw(name, half, keys), 2).gradient
            for half in (0, 1)
        ]
    for key, value in gradient.u.items():
        torch.testing.assert_close(value, (halves[0][key] + halves[1][key]) / 2, rtol=1e-3, atol=1e-5)
    here = feedback_gradient(entry.task, backbone, "meta", gradient._draw(name, 0, keys), 2).gradient
    assert not torch.allclose(here["norm.weight"], halves[0]["norm.weight"], rtol=1e-2)


def test_it_needs_the_optimiser(make_step):
    with pytest.raises(UserError, match=r"value\.lead is true"):
        make_step(lead=True)
