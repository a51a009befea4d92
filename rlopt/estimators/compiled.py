"""The estimators of one policy, as they are or as native code."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from rlopt.estimators.gradients import Policy, Psi, hessian_vector_product, policy_gradient
from rlopt.native_code import as_native
from rlopt.rollout import Rollout


class Estimators:
    """`policy_gradient` and `hessian_vector_product` of one policy.

    Args:
        policy: (θ, observations, actions) -> log π_θ.
        native: compile each for this device when it is first called, once for episodes of all lengths; None does not.
    """

    def __init__(self, policy: Policy, native: torch.device | None = None):
        self.policy, self.native = policy, native
        self._gradient, self._product = self._eager_gradient, self._eager_product
        if native is not None:
            how = native, torch.compiler.skip_guard_on_all_nn_modules_unsafe
            self._gradient = as_native(self._eager_gradient, *how, dynamic=True)
            self._product = as_native(self._eager_product, *how, dynamic=True)

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
