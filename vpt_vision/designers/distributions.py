"""The families of laws a designer bends: each holds the recipe's law at parameter zero.

A law turns the recipe's uniform numbers into its own by the inverse of its distribution function, so a
learned and a fixed designer draw from the same uniforms; density and KL to the recipe are in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Kumaraswamy:
    """Kumaraswamy(a, b) on [0, 1]; log a = log b = 0 is uniform.

    F(x) = 1 - (1 - x^a)^b (Kumaraswamy, Journal of Hydrology 46, 1980): a family much like Beta's, with
    elementary distribution function and inverse. `log_a` and `log_b` have one shape.
    """

    log_a: Tensor
    log_b: Tensor

    @classmethod
    def uniform(cls, *shape: int, device: torch.device) -> Kumaraswamy:
        """Return the uniform law, a = b = 1, for parameters of `shape`."""
        return cls(torch.zeros(shape, device=device), torch.zeros(shape, device=device))

    def __getitem__(self, index: tuple[slice | None, ...]) -> Kumaraswamy:
        return Kumaraswamy(self.log_a[index], self.log_b[index])

    def inverse_cdf(self, u: Tensor) -> Tensor:
        """Return x = (1 - (1-u)^(1/b))^(1/a) of uniform `u` in (0, 1), broadcast with the parameters."""
        # log1p and expm1 keep small u exact: at b = 1 the inner term is u to the last digit or two.
        inner = -torch.expm1(torch.log1p(-u) * torch.exp(-self.log_b))
        return inner ** torch.exp(-self.log_a)

    def log_inverse_cdf(self, u: Tensor) -> Tensor:
        """Return log x of x = `inverse_cdf(u)` in fp64, exact where x itself would round to 1."""
        log_rest = torch.log1p(-u.double()) * torch.exp(-self.log_b.double())  # log(1 - x^a)
        return _log_one_minus_exp(log_rest) * torch.exp(-self.log_a.double())

    def log_prob(self, log_x: Tensor) -> Tensor:
        """Return log(a b x^(a-1) (1-x^a)^(b-1)) at x in (0, 1), given as `log_x`, in its dtype."""
        log_a, log_b = self.log_a.to(log_x.dtype), self.log_b.to(log_x.dtype)
        a, b = log_a.exp(), log_b.exp()
        return log_a + log_b + (a - 1) * log_x + (b - 1) * _log_one_minus_exp(a * log_x)

    def kl_to_uniform(self) -> Tensor:
        """Return KL = log(ab) - (1 - 1/a) H_b - (1 - 1/b), H_b = ψ(b+1) + γ the harmonic number.

        It is the expected log density: E log(1-x^a) = -1/b, as (1-x^a)^b is uniform, and
        E log x = -H_b / a, as 1-x^a follows Beta(b, 1).
        """
        harmonic = torch.digamma(self.log_b.exp() + 1) + _EULER_GAMMA
        return self.log_a + self.log_b + torch.expm1(-self.log_a) * harmonic + torch.expm1(-self.log_b)

    def mean(self) -> Tensor:
        """Return E x = b B(1 + 1/a, b), B the beta function."""
        first, b = 1 + torch.exp(-self.log_a), self.log_b.exp()
        return torch.exp(self.log_b + torch.lgamma(first) + torch.lgamma(b) - torch.lgamma(first + b))


_EULER_GAMMA = 0.5772156649015329


def _log_one_minus_exp(y: Tensor) -> Tensor:
    """Log(1 - e^y) of y < 0, to the last digits at both ends, with finite gradients."""
    near = y > -math.log(2)
    of_near = torch.log(-torch.expm1(y.where(near, -1.0)))
    of_far = torch.log1p(-torch.exp(y.where(~near, -1.0)))
    return torch.where(near, of_near, of_far)


@dataclass(frozen=True)
class OffsetBernoulli:
    """An event of the recipe's probability p, its logit moved by `offset`; offset 0 is the recipe.

    An event that the recipe makes certain or rules out (p of 0 or 1) stays so. `probability` and
    `offset` broadcast.
    """

    probability: Tensor
    offset: Tensor

    def inverse_cdf(self, u: Tensor) -> Tensor:
        """Return the event, bool, of uniform `u` in (0, 1): true where u < p."""
        return u < self.mean()

    def mean(self) -> Tensor:
        """Return the moved probability."""
        return torch.sigmoid(self._logit() + self.offset)

    def log_prob(self, event: Tensor) -> Tensor:
        """Return the log probability of bool `event`."""
        logit = self._logit() + self.offset
        return functional.logsigmoid(torch.where(event, logit, -logit))

    def kl_to_recipe(self) -> Tensor:
        """Return KL from the moved law to the recipe's; 0 where the recipe is certain."""
        open_event = (self.probability > 0) & (self.probability < 1)
        recipe = torch.where(open_event, self._logit(), 0.0)  # finite, so that no gradient is NaN
        moved = recipe + self.offset
        p = torch.sigmoid(moved)
        # log p'/p and log (1-p')/(1-p) differ by the offset.
        kl = p * self.offset + functional.logsigmoid(-moved) - functional.logsigmoid(-recipe)
        return torch.where(open_event, kl, 0.0)

    def entropy_gain(self) -> Tensor:
        """Return the moved law's entropy less the recipe's, in nats; 0 where the recipe is certain."""
        open_event = (self.probability > 0) & (self.probability < 1)
        recipe = torch.where(open_event, self._logit(), 0.0)
        gain = _bernoulli_entropy(recipe + self.offset) - _bernoulli_entropy(recipe)
        return torch.where(open_event, gain, 0.0)

    def _logit(self) -> Tensor:
        return torch.logit(self.probability)


def _bernoulli_entropy(logit: Tensor) -> Tensor:
    return functional.softplus(logit) - logit * torch.sigmoid(logit)


@dataclass(frozen=True)
class GridPosition:
    """A point of the unit square: a categorical over R x C equal cells, then uniform in the cell.

    `logits` is [..., R, C]; equal logits are the uniform law, and several objects may each have a peak.
    """

    logits: Tensor

    def inverse_cdf(self, u_row: Tensor, u_column: Tensor) -> tuple[Tensor, Tensor]:
        """Return (row, column) [...] in [0, 1] of two independent uniforms [...].

        The row by its marginal's distribution function, then the column by that of its row: both
        are piecewise linear, so equal logits give the uniforms back.
        """
        cells = self.logits.flatten(-2).softmax(-1).view_as(self.logits)
        row_index, row = _piecewise_linear(cells.sum(-1), u_row)
        index = row_index[..., None, None].expand(*row_index.shape, 1, self.logits.shape[-1])
        in_row = self.logits.gather(-2, index).squeeze(-2).softmax(-1)
        _, column = _piecewise_linear(in_row, u_column)
        return row, column

    def log_prob(self, row: Tensor, column: Tensor) -> Tensor:
        """Return the log density at points (`row`, `column`) [...] of the unit square."""
        rows, columns = self.logits.shape[-2:]
        i = (row * rows).long().clamp(max=rows - 1)
        j = (column * columns).long().clamp(max=columns - 1)
        log_cells = self.logits.flatten(-2).log_softmax(-1)
        return log_cells.gather(-1, (i * columns + j)[..., None]).squeeze(-1) + math.log(rows * columns)

    def kl_to_uniform(self) -> Tensor:
        """Return KL [...] to the uniform law on the square: log(R C) minus the cells' entropy."""
        return kl_to_equal(self.logits)


def kl_to_equal(logits: Tensor) -> Tensor:
    """KL [...] of softmax over the last two axes of `logits` [..., R, C] to equal shares."""
    log_shares = logits.flatten(-2).log_softmax(-1)
    return (log_shares.exp() * (log_shares + math.log(log_shares.shape[-1]))).sum(-1)


def _piecewise_linear(shares: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Invert a distribution function linear in each of N equal intervals of [0, 1].

    `shares` [..., N] sums to 1, `u` is [...]; returns the interval's index and the point, both [...].
    """
    count = shares.shape[-1]
    edges = shares.cumsum(-1)
    index = (u[..., None] > edges[..., :-1]).sum(-1)
    share = shares.gather(-1, index[..., None]).squeeze(-1).clamp(min=torch.finfo(shares.dtype).tiny)
    upper = edges.gather(-1, index[..., None]).squeeze(-1)
    within = (1 - (upper - u) / share).clamp(0, 1)
    return index, (index + within) / count
