"""Where the learner's optimiser leads, whatever the next task is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def led(parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW | None) -> Iterator[None]:
    """Stand, for a while, where `optimiser`'s next step takes `parameters` if its gradient is 0; None: stay.

    AdamW's step is -lr (m̂ / (√v̂ + ε) + λ θ), and of m̂ the next gradient is one part in 1 / (1 - β1): what it
    does starts from where the rest leads, and the downstream loss changes with the task as it does around
    that point. Afterwards the parameters are what they were, bit for bit. One that the optimiser has not
    moved yet stays. Sharded parameters (DTensor) move shard by shard.
    """
    if optimiser is None:
        yield
        return
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    group_of = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    try:
        with torch.no_grad():
            for parameter in parameters.values():
                state = optimiser.state.get(parameter, {})
                if not state:
                    continue
                group = group_of[id(parameter)]
                (beta1, beta2), step = group["betas"], state["step"] + 1
                momentum = beta1 * state["exp_avg"] / (1 - beta1**step)
                size = (beta2 * state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * momentum / size)
        torch.clear_autocast_cache()  # it keeps weights as they were when first cast
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
        torch.clear_autocast_cache()
