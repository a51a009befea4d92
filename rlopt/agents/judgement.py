"""How a utility judges the returns that an agent has: f, the weights of the objectives, the multipliers of constraints."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rlopt.objectives import VectorUtility


class Judgement(NamedTuple):
    """What a utility says at J."""

    value: Tensor  # f(J), a scalar
    slopes: Tensor  # c = ∇f(proj J) [K], at the multipliers as they were
    multipliers: Tensor  # [K], after their ascent at J; [0] where the utility has none

    def metrics(self, returns: Tensor) -> dict[str, Tensor]:
        """Scalars to log, with J [K] beside its weights."""
        named = {"objective": returns, "slope": self.slopes, "multiplier": self.multipliers}
        return {"utility": self.value} | {f"{name}_{k}": x for name, vector in named.items() for k, x in enumerate(vector)}


def judge(utility: VectorUtility, returns: Tensor, multipliers: Tensor) -> Judgement:
    """f, c and the multipliers at J = `returns` [K]; `multipliers` [0] begins with the utility's first.

    Raises:
        ValueError: the utility is one of another K, or its value or derivative at J is not finite.
    """
    multipliers = current_multipliers(utility, multipliers, returns)
    return Judgement(*utility.value_and_gradient(returns, multipliers), utility.ascend(multipliers, returns))


def current_multipliers(utility: VectorUtility, multipliers: Tensor, returns: Tensor) -> Tensor:
    """Those that were kept, or the utility's first for returns [..., K]."""
    return multipliers if len(multipliers) else utility.first_multipliers(returns.shape[-1]).to(returns)
