"""What the learner's optimiser makes of a gradient: P in V = ⟨P u, ∇L_pre⟩."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vpt_vision.feedback import Direction


def adamw_step(
    u: Direction, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW
) -> Direction:
    """Return P u with P = diag(s / (√v̂ + ε)), AdamW's preconditioner in its state as it stands.

    v̂ is the running second moment without its bias, ε AdamW's own, and s the parameter group's `lr_scale`
    (its learning rate over the scheduled one; 1 where a group has none). ⟨P u, g⟩ is then the fall of L_down,
    per unit of the scheduled learning rate, that gradient g brings about, to first order and summed over
    this step and the later ones that its share of the first moment lives on in: Σ_k (1 - β1) β1^k = 1.
    So v̂ and the clipping factor are taken as given, though g enters both, and weight decay and earlier
    gradients, which no task of this step moves, are left out.

    A parameter that the optimiser has not moved yet, as in a frozen backbone, has P = 0.
    """
    group_of = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    step = {}
    for name, direction in u.items():
        parameter = parameters[name]
        state = optimiser.state.get(parameter, {})
        if not state:
            step[name] = torch.zeros_like(direction)
            continue
        group = group_of[id(parameter)]
        corrected: Tensor = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
        step[name] = group.get("lr_scale", 1.0) * direction / (corrected.sqrt() + group["eps"])
    return step
