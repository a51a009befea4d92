"""The linear-quadratic problem seen through noise: exact values of controllers with a linear memory, and the best one.

Letters: n components of the state x, m of the action a, p of the observation o, d of the memory z, H the horizon.
Source of the recursion: second moments of a linear system; of the optimum: separation of estimation and control,
for example Åström, Introduction to Stochastic Control Theory, 1970. All numbers are float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlopt.arguments import check_number
from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv, SingleCopy
from rlopt.envs.linear_quadratic import LinearQuadratic
from rlopt.envs.linear_quadratic_vector import ACTION_LIMIT
from rlopt.envs.spaces import Array, ArrayTree

# Riccati recursions have converged where they change by less, relative to their largest entry.
CONVERGED = 1e-14
MAX_ITERATIONS = 10_000


class LinearController(NamedTuple):
    """a ~ N(K_z z + K_o o, σ_a²) and z' ~ N(F z + G o, σ_z²), with z_0 = 0.

    Attributes:
        memory_gain: K_z, [m, d].
        observation_gain: K_o, [m, p].
        carry: F, [d, d].
        write: G, [d, p].
    """

    memory_gain: Tensor
    observation_gain: Tensor
    carry: Tensor
    write: Tensor


@dataclass(frozen=True, eq=False)
class LinearQuadraticGaussian:
    """A `LinearQuadratic` problem of which o = C x + v is seen, v ~ N(0, V).

    Attributes:
        system: what moves, what it costs, γ and the horizon.
        C: [p, n].
        observation_covariance: V, [p, p].

    Raises:
        ValueError: a shape that does not fit, or a V that is no covariance.
    """

    system: LinearQuadratic
    C: Tensor
    observation_covariance: Tensor

    def __post_init__(self) -> None:
        for name in ("C", "observation_covariance"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        n = self.system.num_states
        if self.C.ndim != 2 or self.C.shape[1] != n or not len(self.C):
            raise ValueError(f"C: expected shape (p, {n}), got {tuple(self.C.shape)}")
        p, v = len(self.C), self.observation_covariance
        if v.shape != (p, p):
            raise ValueError(f"observation_covariance: expected shape {(p, p)}, got {tuple(v.shape)}")
        if not torch.allclose(v, v.T) or float(torch.linalg.eigvalsh(v).min()) < -1e-9 * float(v.abs().max()):
            raise ValueError("observation_covariance: expected a symmetric, positive semi-definite matrix")

    @classmethod
    def point_mass(cls, noise: float = 0.5, observation_noise: float = 0.1, **kwargs: Any) -> LinearQuadraticGaussian:
        """The mass of `LinearQuadratic.point_mass`, of which only the position is seen, with noise of that deviation."""
        check_number("observation_noise", observation_noise, at_least=0)
        position = torch.tensor([[1.0, 0.0]])
        return cls(LinearQuadratic.point_mass(noise=noise, **kwargs), position, observation_noise**2 * torch.eye(1))

    def value(self, controller: LinearController, sigma_a: float = 0.0, sigma_z: float = 0.0) -> Tensor:
        """J_H = Σ_{t<H} γ^t E[r_t] by the recursion of second moments, a scalar, differentiable.

        P' = M P Mᵀ + N for the moments P of (x, z), with P_0 = diag(E[x_0 x_0ᵀ], 0).

        Raises:
            ValueError: a shape that does not fit.
        """
        system = self.system
        moves, noise = self._closed_loop(controller, sigma_a, sigma_z)
        moments = torch.zeros_like(moves)
        n = system.num_states
        moments[:n, :n] = system.initial_covariance + torch.outer(system.initial_mean, system.initial_mean)
        value = torch.zeros((), dtype=torch.float64)
        for t in range(system.horizon):
            value = value + system.gamma**t * self._expected_reward(controller, moments, sigma_a)
            moments = moves @ moments @ moves.T + noise
        return value

    def average_reward(self, controller: LinearController, sigma_a: float = 0.0, sigma_z: float = 0.0) -> Tensor:
        """lim E[r_t], a scalar, differentiable: the reward at the moments that solve P = M P Mᵀ + N.

        Raises:
            ValueError: a shape that does not fit, or a closed loop that is not stable.
        """
        moves, noise = self._closed_loop(controller, sigma_a, sigma_z)
        radius = float(torch.linalg.eigvals(moves.detach()).abs().max())
        if radius >= 1:
            raise ValueError(f"controller: expected a stable closed loop, got one whose spectral radius is {radius:.6g}")
        identity = torch.eye(moves.numel(), dtype=torch.float64)
        moments = torch.linalg.solve(identity - torch.kron(moves, moves), noise.reshape(-1)).view(noise.shape)
        return self._expected_reward(controller, moments, sigma_a)

    def optimal_controller(self) -> LinearController:
        """The best controller for the average reward: the Kalman filter's prediction z, and the Riccati gain on its estimate.

        K_z = −L(I − KC), K_o = −LK, F = (A − BL)(I − KC), G = (A − BL)K, without noise.

        Raises:
            ValueError: there is none, because the state cannot be brought to rest or not be told from observations.
        """
        gain, _ = self._control()
        kalman, _ = self._filter()
        keep = torch.eye(self.system.num_states, dtype=torch.float64) - kalman @ self.C
        closed = self.system.A - self.system.B @ gain
        return LinearController(-gain @ keep, -gain @ kalman, closed @ keep, closed @ kalman)

    def optimal_average_reward(self) -> float:
        """−[tr(S W) + tr(Σ_f Lᵀ (R + BᵀSB) L)]: the noise costs, and so does what the filter does not know.

        Raises:
            ValueError: see `optimal_controller`.
        """
        system = self.system
        gain, cost = self._control()
        _, uncertainty = self._filter()
        curvature = gain.T @ (system.R + system.B.T @ cost @ system.B) @ gain
        return -float((cost * system.noise_covariance).sum() + (uncertainty * curvature).sum())

    def _expected_reward(self, controller: LinearController, moments: Tensor, sigma_a: float) -> Tensor:
        """−tr(Q P_xx) − tr(R Σ_a), Σ_a = H P Hᵀ + K_o V K_oᵀ + σ_a² I, H = [K_o C, K_z]."""
        n, by_o = self.system.num_states, controller.observation_gain
        gains = torch.cat([by_o @ self.C, controller.memory_gain], 1)
        actions = gains @ moments @ gains.T + by_o @ self.observation_covariance @ by_o.T
        actions = actions + sigma_a**2 * torch.eye(len(gains), dtype=torch.float64)
        return -((self.system.Q * moments[:n, :n]).sum() + (self.system.R * actions).sum())

    def _closed_loop(self, controller: LinearController, sigma_a: float, sigma_z: float) -> tuple[Tensor, Tensor]:
        """M and N, [n + d, n + d]: how (x, z) moves, and the covariance of the noise in it."""
        self._check(controller)
        check_number("sigma_a", sigma_a, at_least=0)
        check_number("sigma_z", sigma_z, at_least=0)
        a, b, c, v = self.system.A, self.system.B, self.C, self.observation_covariance
        by_z, by_o, carry, write = controller
        moves = torch.cat([torch.cat([a + b @ by_o @ c, b @ by_z], 1), torch.cat([write @ c, carry], 1)])
        action_noise = by_o @ v @ by_o.T + sigma_a**2 * torch.eye(b.shape[1], dtype=torch.float64)
        shared = b @ by_o @ v @ write.T  # the same v is in the action and in the memory
        of_memory = write @ v @ write.T + sigma_z**2 * torch.eye(len(carry), dtype=torch.float64)
        above = torch.cat([self.system.noise_covariance + b @ action_noise @ b.T, shared], 1)
        return moves, torch.cat([above, torch.cat([shared.T, of_memory], 1)])

    def _check(self, controller: LinearController) -> None:
        m, p, d = self.system.num_actions, len(self.C), len(controller.carry)
        shapes = {"memory_gain": (m, d), "observation_gain": (m, p), "carry": (d, d), "write": (d, p)}
        for name, shape in shapes.items():
            if getattr(controller, name).shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tuple(getattr(controller, name).shape)}")

    def _control(self) -> tuple[Tensor, Tensor]:
        """L = (R + BᵀSB)⁻¹BᵀSA and S = Q + AᵀSA − AᵀSBL."""
        a, b, q, r = self.system.A, self.system.B, self.system.Q, self.system.R
        cost = _riccati(a, b, q, r)
        return torch.linalg.solve(r + b.T @ cost @ b, b.T @ cost @ a), cost

    def _filter(self) -> tuple[Tensor, Tensor]:
        """K = Σ_p Cᵀ(C Σ_p Cᵀ + V)⁻¹ and Σ_f = (I − KC) Σ_p, with Σ_p = A Σ_f Aᵀ + W: the control problem's dual."""
        c, v = self.C, self.observation_covariance
        predicted = _riccati(self.system.A.T, c.T, self.system.noise_covariance, v)
        gain = torch.linalg.solve(c @ predicted @ c.T + v, c @ predicted).T
        return gain, predicted - gain @ c @ predicted


def _riccati(a: Tensor, b: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """The S = Q + AᵀSA − AᵀSB(R + BᵀSB)⁻¹BᵀSA that the recursion comes to from a definite matrix: the stabilising one."""
    s = q + torch.eye(len(q), dtype=torch.float64)
    for _ in range(MAX_ITERATIONS):
        after = q + a.T @ s @ a - a.T @ s @ b @ torch.linalg.solve(r + b.T @ s @ b, b.T @ s @ a)
        after = 0.5 * (after + after.T)
        if not bool(after.isfinite().all()):
            break
        if float((after - s).abs().max()) <= CONVERGED * float(after.abs().max()):
            return after
        s = after
    raise ValueError(
        "system: expected one that can be brought to rest, and that noise and observations make it possible to follow; "
        "Riccati's recursion does not converge"
    )


class LinearQuadraticGaussianVectorEnv(FiniteHorizonVectorEnv):
    """N copies of a `LinearQuadraticGaussian` problem; truncated at its horizon.

    Args:
        problem: whose exact values are those of this environment.
        num_envs: N.
        privileged: show {"observation": o, "critic": x}.
    """

    joinable = True

    def __init__(self, problem: LinearQuadraticGaussian, num_envs: int = 1, privileged: bool = False):
        self.problem, self.privileged = problem, privileged
        system = problem.system
        seen: spaces.Space = spaces.Box(-np.inf, np.inf, (len(problem.C),), np.float32)
        state = spaces.Box(-np.inf, np.inf, (system.num_states,), np.float32)
        space = spaces.Dict({"observation": seen, "critic": state}) if privileged else seen
        actions = spaces.Box(-ACTION_LIMIT, ACTION_LIMIT, (system.num_actions,), np.float32)
        super().__init__(num_envs, system.horizon, space, actions)
        self._matrices = [matrix.detach().numpy() for matrix in (system.A, system.B, system.Q, system.R)]
        self._initial = system.initial_mean.numpy(), system.initial_covariance.numpy()
        self._noise_covariance = system.noise_covariance.numpy()
        self._seen, self._observation_covariance = problem.C.numpy(), problem.observation_covariance.numpy()

    def _first_states(self, num: int) -> Array:
        """(x, v), [num, n + p]: the noise of an observation is part of the state, so that it is drawn once."""
        return self._with_observation_noise(self._normal(*self._initial, num))

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        a, b, q, r = self._matrices
        x, actions = states[:, : len(a)], actions.astype(np.float64)
        rewards = -((x @ q * x).sum(1) + (actions @ r * actions).sum(1))
        following = x @ a.T + actions @ b.T + self._normal(np.zeros(len(a)), self._noise_covariance, len(x))
        return self._with_observation_noise(following), rewards, np.zeros(self.num_envs, bool)

    def _observations(self, states: Array) -> ArrayTree:
        n = self.problem.system.num_states
        x, noise = states[:, :n], states[:, n:]
        seen = (x @ self._seen.T + noise).astype(np.float32)
        return {"observation": seen, "critic": x.astype(np.float32)} if self.privileged else seen

    def _with_observation_noise(self, x: Array) -> Array:
        zeros = np.zeros(len(self._observation_covariance))
        return np.concatenate([x, self._normal(zeros, self._observation_covariance, len(x))], 1)

    def _normal(self, mean: Array, covariance: Array, num: int) -> Array:
        return self.np_random.multivariate_normal(mean, covariance, num)


def noisy_point_mass_envs(num_envs: int = 1, privileged: bool = False, **kwargs: Any) -> LinearQuadraticGaussianVectorEnv:
    """ "rlopt/LQG-v0"; `kwargs` are those of `LinearQuadraticGaussian.point_mass`."""
    return LinearQuadraticGaussianVectorEnv(LinearQuadraticGaussian.point_mass(**kwargs), num_envs, privileged)


def noisy_point_mass_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/LQG-v0"."""
    return SingleCopy(noisy_point_mass_envs(1, **kwargs))
