"""The estimators of one policy, as they are or as native code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlopt.estimators.gradients import Policy, Psi, hessian_vector_product, policy_gradient
from rlopt.rollout import Rollout


class Estimators:
    """`policy_gradient` and `hessian_vector_product` of one policy.

    Args:
        policy: (θ, observations, actions) -> log π_θ.
        native: compile each when it is first called, once for episodes of all lengths.
    """

    def __init__(self, policy: Policy, native: bool = False):
        self.policy, self.native = policy, native
        as_called = _compiled if native else _as_it_is
        self._gradient = as_called(self._eager_gradient)
        self._product = as_called(self._eager_product)

    def __deepcopy__(self, memo: dict[int, Any]) -> Estimators:
        """Of the copied policy, compiled anew."""
        return Estimators(copy.deepcopy(self.policy, memo), self.native)

    def gradient(self, theta: Tensor, rollout: Rollout, psi: Psi) -> Tensor:
        """ĝ(θ), [d]; see `policy_gradient`."""
        result: Tensor = self._gradient(theta, rollout, psi)
        return result

    def product(self, theta: Tensor, rollout: Rollout, psi: Psi, vector: Tensor) -> Tensor:
        """B v, [d]; see `hessian_vector_product`."""
        result: Tensor = self._product(theta, rollout, psi, vector)
        return result

    def _eager_gradient(self, theta: Tensor, rollout: Rollout, psi: Psi) -> Tensor:
        return policy_gradient(self.policy, theta, rollout, psi)

    def _eager_product(self, theta: Tensor, rollout: Rollout, psi: Psi, vector: Tensor) -> Tensor:
        return hessian_vector_product(self.policy, theta, rollout, psi, vector)


def _as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    more: Any = {"isolate_recompiles": True, "options": options}
    return torch.compile(function, dynamic=True, **more)
