"""How wrong is the direction d_t of each method? E‖d_t − ∇J(θ_t)‖² along a path that no noise can change.

θ_t moves on a circle in the logits of a tabular MDP, with chords of the method's own step lengths; at every θ_t the method
sees the trajectories that it asks for: one for its gradient and, N-HARPG, one for its Hessian-vector product. All
trajectories of the MDP are enumerated, so the mean and the covariance of every estimator are sums, and the error's second
moments follow from a recursion: the lines. The dots are simulations with `rlopt.updates`. What is plotted is the error over
tr Cov(g(θ_t)), the error of a single fresh gradient; dashed is the same momentum without the method's correction. The waves
are the turns of the circle.

`python benchmarks/direction_error.py run` stores `benchmarks/results/direction_error.json` and draws
`docs/images/direction_error.png`; `plot` only draws.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlopt.envs.tabular import TabularMDP
from rlopt.estimators.returns import discount_powers
from rlopt.schedules import Power
from rlopt.updates import corrected_momentum, lookahead

RESULTS = Path(__file__).parent / "results" / "direction_error.json"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "direction_error.png"
CHUNK = 20
NODES = 2  # of the quadrature over the point between two iterates
FIT = (100, 10_000)  # iterations that slopes are fitted to


class Sizes(NamedTuple):
    """Trajectories of an iteration: N for the gradient, M for the Hessian-vector product."""

    gradient: int = 1
    hessian: int = 1


ONE = Sizes()


class Tables:
    """g, ĝ and B v of every trajectory of a small MDP under a softmax policy, one reward a step and no baseline.

    The score of a pair counted x(s, a) times is x(s, a) − π(a | s) Σ_b x(s, b): everything is a fixed table of counts and
    a map that depends on θ. All methods broadcast: θ [T, 1, d] meets all n trajectories, θ [R, d] the R of `columns`.
    """

    def __init__(self, mdp: TabularMDP):
        self.mdp = mdp
        uniform = torch.zeros(mdp.num_parameters, dtype=torch.float64)
        rollout, probabilities = mdp.enumerate(uniform)
        pairs = rollout.observations * mdp.num_actions + rollout.actions  # type: ignore[operator]
        counts = torch.nn.functional.one_hot(pairs, mdp.num_parameters).cumsum(0).double()
        discounted = discount_powers(mdp.gamma, rollout.rewards) * rollout.rewards
        self.counts = counts.transpose(0, 1).contiguous()  # pairs up to and with step h, [n, H, d]
        self.rewards = discounted.T.contiguous()  # γ^h r_h, [n, H]
        self.log_environment = probabilities.log() - counts[-1] @ self.log_policy(uniform)
        self.reward_counts = torch.einsum("nh,nhd->nd", self.rewards, self.counts)
        self.outer = torch.einsum("nh,nhd,nhe->nde", self.rewards, self.counts, self.counts)
        self.same_state = torch.block_diag(*[torch.ones(mdp.num_actions, mdp.num_actions).double()] * mdp.num_states)
        codes = (pairs * mdp.num_parameters ** torch.arange(mdp.horizon)[:, None]).sum(0)
        self.column_of = torch.zeros(mdp.num_parameters**mdp.horizon, dtype=torch.int64)
        self.column_of[codes] = torch.arange(len(codes))

    def log_policy(self, theta: Tensor) -> Tensor:
        """log π_θ, [..., d]."""
        return torch.log_softmax(theta.unflatten(-1, (-1, self.mdp.num_actions)), -1).flatten(-2)

    def probabilities(self, theta: Tensor) -> Tensor:
        """p(τ | θ) of all trajectories, [..., n], for θ [..., d]."""
        return (self.log_policy(theta) @ self.counts[:, -1].T + self.log_environment).exp()

    def gradients(self, theta: Tensor, columns: Any = slice(None)) -> Tensor:
        """g(τ, θ)."""
        return self._scores(self.reward_counts[columns], theta)

    def weighted_gradients(self, theta: Tensor, behaviour: Tensor, columns: Any = slice(None)) -> Tensor:
        """ĝ(τ; θ) with per-step weights, of trajectories drawn at `behaviour`."""
        log_ratio = self.log_policy(theta) - self.log_policy(behaviour)
        weights = torch.einsum("...hd,...d->...h", self.counts[columns], log_ratio).exp()
        scores = torch.einsum("...h,...hd->...d", weights * self.rewards[columns], self.counts[columns])
        return self._scores(scores, theta)

    def hessian_products(self, theta: Tensor, vector: Tensor, columns: Any = slice(None)) -> Tensor:
        """B_c(τ, θ) v, the causal form."""
        policy = self.log_policy(theta).exp()
        centred = vector - self._by_state(policy * vector)  # ⟨score of a pair, v⟩
        scores = torch.einsum("...de,...e->...d", self.outer[columns], centred)
        return self._scores(scores, theta) - self._by_state(self.reward_counts[columns]) * policy * centred

    def gradient(self, theta: Tensor) -> Tensor:
        """∇J(θ) = E[g], [..., d]."""
        return self._scores(self.probabilities(theta) @ self.reward_counts, theta)

    def gradient_covariance(self, theta: Tensor) -> Tensor:
        """Cov(g(τ, θ)), [..., d, d]: that of the counts, mapped as they are."""
        counts = covariance(self.probabilities(theta), self.reward_counts)
        half = self._scores(counts, theta[..., None, :])
        return self._scores(half.transpose(-1, -2), theta[..., None, :])

    def draw(self, theta: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """Columns of `num` trajectories, at one θ [d] or at a θ for each, [R, d]."""
        if theta.ndim == 1:
            cumulative = self.probabilities(theta).cumsum(0)
            uniform = torch.rand(num, generator=generator, dtype=torch.float64)
            return torch.searchsorted(cumulative / cumulative[-1], uniform, right=True)
        actions_of = self.log_policy(theta).exp().unflatten(-1, (-1, self.mdp.num_actions))
        states = _draw_rows(self.mdp.initial.expand(num, -1), generator)
        codes = torch.zeros(num, dtype=torch.int64)
        for step in range(self.mdp.horizon):
            actions = _draw_rows(actions_of[torch.arange(num), states], generator)
            codes += (states * self.mdp.num_actions + actions) * self.mdp.num_parameters**step
            states = _draw_rows(self.mdp.transitions[states, actions], generator)
        return self.column_of[codes]

    def _scores(self, counts: Tensor, theta: Tensor) -> Tensor:
        return counts - self._by_state(counts) * self.log_policy(theta).exp()

    def _by_state(self, pairs: Tensor) -> Tensor:
        """Sums over the actions of a state, in the place of each of them."""
        return pairs @ self.same_state


def _draw_rows(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One outcome of each of the distributions [R, M]."""
    uniform = torch.rand(len(probabilities), 1, generator=generator, dtype=torch.float64)
    return (uniform >= probabilities.cumsum(-1)).sum(-1).clamp_max(probabilities.shape[-1] - 1)


def covariance(probabilities: Tensor, values: Tensor) -> Tensor:
    """Covariance [..., d, d] of values [..., n, d] that have these probabilities [..., n]."""
    mean = torch.einsum("...n,...nd->...d", probabilities, values)
    second = torch.einsum("...n,...nd,...ne->...de", probabilities, values, values)
    return second - mean[..., :, None] * mean[..., None, :]


# ---------------------------------------------------------------------- the methods, exactly and by simulation


class Increment(NamedTuple):
    """What an iteration adds: E[e_t] = (1 − η) E[e_{t−1}] + drift, Cov(e_t) = (1 − η)² Cov(e_{t−1}) + noise."""

    drift: Tensor  # [..., d]
    noise: Tensor  # [..., d, d]


def harpg(tables: Tables, theta: Tensor, previous: Tensor, eta: Tensor, sizes: Sizes, nodes: int = NODES) -> Increment:
    """N-HARPG: a Hessian-vector product at one random point between the iterates, from trajectories sampled there."""
    vector = theta - previous
    within, means, second = 0.0, 0.0, 0.0
    for q, weight in zip(*_quadrature(nodes), strict=True):
        point = torch.lerp(previous, theta, q)
        products = tables.hessian_products(point[..., None, :], vector[..., None, :])
        probabilities = tables.probabilities(point)
        mean = torch.einsum("...n,...nd->...d", probabilities, products)
        within = within + weight * covariance(probabilities, products)
        means = means + weight * mean
        second = second + weight * mean[..., :, None] * mean[..., None, :]
    between = second - means[..., :, None] * means[..., None, :]
    fresh = tables.gradient_covariance(theta) / sizes.gradient
    scale = eta[..., None, None]
    noise = scale**2 * fresh + (1 - scale) ** 2 * (within / sizes.hessian + between)
    return Increment(torch.zeros_like(theta), noise)


def npgigt(tables: Tables, theta: Tensor, previous: Tensor, eta: Tensor, sizes: Sizes) -> Increment:
    """N-PG-IGT: the gradient at the look-ahead point."""
    point = theta + ((1 - eta) / eta)[..., None] * (theta - previous)
    here, share = tables.gradient(theta), eta[..., None]
    drift = (1 - share) * (tables.gradient(previous) - here) + share * (tables.gradient(point) - here)
    fresh = tables.gradient_covariance(point) / sizes.gradient
    return Increment(drift, eta[..., None, None] ** 2 * fresh)


def storm(tables: Tables, theta: Tensor, previous: Tensor, eta: Tensor, sizes: Sizes) -> Increment:
    """STORM-PG; with η = 0 the recursion of SARAH, that is SRVR-PG between its restarts."""
    now, before = theta[..., None, :], previous[..., None, :]
    difference = tables.gradients(now) - (1 - eta)[..., None, None] * tables.weighted_gradients(before, now)
    return Increment(torch.zeros_like(theta), covariance(tables.probabilities(theta), difference) / sizes.gradient)


def momentum(tables: Tables, theta: Tensor, previous: Tensor, eta: Tensor, sizes: Sizes) -> Increment:
    """Momentum without correction; with η = 1 a fresh gradient."""
    drift = (1 - eta)[..., None] * (tables.gradient(previous) - tables.gradient(theta))
    fresh = tables.gradient_covariance(theta) / sizes.gradient
    return Increment(drift, eta[..., None, None] ** 2 * fresh)


Estimates = tuple[Tensor, Tensor | float]


def sample_gradient(tables: Tables, theta: Tensor, sizes: Sizes, num: int, generator: torch.Generator) -> Tensor:
    """`num` independent batch means of g at θ [d], [R, d]."""
    batches = (tables.gradients(theta, tables.draw(theta, num, generator)) for _ in range(sizes.gradient))
    return sum(batches, torch.zeros(())) / sizes.gradient


def sample_harpg(
    tables: Tables, theta: Tensor, previous: Tensor, eta: float, sizes: Sizes, num: int, generator: torch.Generator
) -> Estimates:
    """g_t and c_t of R = `num` replicates, each with a point of its own."""
    gradient = sample_gradient(tables, theta, sizes, num, generator)
    points = torch.lerp(previous, theta, torch.rand(num, 1, generator=generator, dtype=torch.float64))
    batches = (
        tables.hessian_products(points, theta - previous, tables.draw(points, num, generator)) for _ in range(sizes.hessian)
    )
    return gradient, sum(batches, torch.zeros(())) / sizes.hessian


def sample_npgigt(
    tables: Tables, theta: Tensor, previous: Tensor, eta: float, sizes: Sizes, num: int, generator: torch.Generator
) -> Estimates:
    """g_t at the look-ahead point; no correction."""
    return sample_gradient(tables, lookahead(theta, previous, eta), sizes, num, generator), 0.0


def sample_storm(
    tables: Tables, theta: Tensor, previous: Tensor, eta: float, sizes: Sizes, num: int, generator: torch.Generator
) -> Estimates:
    """g_t and c_t = g_t − ĝ_{t−1} on the same trajectories."""
    gradient = torch.zeros(num, len(theta), dtype=torch.float64)
    old = torch.zeros_like(gradient)
    for _ in range(sizes.gradient):
        columns = tables.draw(theta, num, generator)
        gradient += tables.gradients(theta, columns) / sizes.gradient
        old += tables.weighted_gradients(previous, theta, columns) / sizes.gradient
    return gradient, gradient - old


def sample_momentum(
    tables: Tables, theta: Tensor, previous: Tensor, eta: float, sizes: Sizes, num: int, generator: torch.Generator
) -> Estimates:
    """g_t; no correction."""
    return sample_gradient(tables, theta, sizes, num, generator), 0.0


@dataclass(frozen=True)
class Method:
    """A method with the schedules that its theory asks for: powers of 2/(t + 2).

    Attributes:
        label: for the plot.
        momentum_power, step_power: exponents of η_t and of α_t/α_0.
        slope: of log error over log t, in theory.
        increment: mean and covariance of what an iteration adds to the error.
        sample: g_t and c_t of many replicates.
    """

    label: str
    momentum_power: float
    step_power: float
    slope: float
    increment: Callable[..., Increment]
    sample: Callable[..., Estimates]

    def momenta(self, num: int) -> Tensor:
        """η_0 … η_{T−1}, 1 in the first iteration, [T]."""
        values = [1.0, *(Power(1.0, self.momentum_power)(t) for t in range(1, num))]
        return torch.tensor(values, dtype=torch.float64)

    def path(self, mdp: TabularMDP, num: int, first_step: float) -> Tensor:
        """θ_0 … θ_{T−1} [T, d] on `circle`, with chords α_t."""
        return circle(mdp, [Power(first_step, self.step_power)(t) for t in range(num - 1)])


METHODS = {
    "harpg": Method("N-HARPG (two trajectories)", 1.0, 1.0, -1.0, harpg, sample_harpg),
    "npgigt": Method("N-PG-IGT", 0.8, 1.0, -0.8, npgigt, sample_npgigt),
    "storm": Method("STORM-PG", 2 / 3, 2 / 3, -2 / 3, storm, sample_storm),
    "momentum": Method("normalised momentum", 2 / 3, 1.0, -2 / 3, momentum, sample_momentum),
    "vanilla": Method("fresh gradient", 0.0, 1.0, 0.0, momentum, sample_momentum),
}
CORRECTED = ("harpg", "npgigt", "storm")


# ---------------------------------------------------------------------- along a path


def small_mdp(horizon: int = 4) -> TabularMDP:
    """Three states, two actions; rewards of mean 0, so that returns are not all noise."""
    mdp = TabularMDP.random(horizon=horizon, seed=3)
    return replace(mdp, rewards=mdp.rewards - mdp.rewards.mean())


def circle(mdp: TabularMDP, step_sizes: Sequence[float], radius: float = 0.25) -> Tensor:
    """θ_0 … θ_T [T + 1, d] with chords of these lengths, in the plane in which ∇²J is largest at the centre."""
    centre = torch.randn(mdp.num_parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curvature, directions = torch.linalg.eigh(mdp.hessian(centre))
    plane = directions[:, curvature.abs().argsort(descending=True)[:2]]
    turns = 2 * torch.asin(torch.as_tensor(step_sizes, dtype=torch.float64) / (2 * radius))
    angles = torch.cat([torch.zeros(1, dtype=torch.float64), turns.cumsum(0)])
    return centre + radius * torch.stack([angles.cos(), angles.sin()], 1) @ plane.T


def exact_moments(
    increment: Callable[..., Increment], tables: Tables, path: Tensor, eta: Tensor, sizes: Sizes = ONE
) -> tuple[Tensor, Tensor]:
    """E[e_t] [T, d] and Cov(e_t) [T, d, d] of e_t = d_t − ∇J(θ_t), for a path [T, d] and momenta [T] with η_0 = 1."""
    before = torch.cat([path[:1], path[:-1]])
    pieces = [increment(tables, *chunk, sizes) for chunk in zip(*(x.split(CHUNK) for x in (path, before, eta)), strict=True)]
    drifts, noises = torch.cat([piece.drift for piece in pieces]), torch.cat([piece.noise for piece in pieces])
    means, covariances = torch.zeros_like(drifts), torch.zeros_like(noises)
    mean, total = torch.zeros_like(drifts[0]), torch.zeros_like(noises[0])
    for t, share in enumerate(eta.tolist()):
        mean = (1 - share) * mean + drifts[t]
        total = (1 - share) ** 2 * total + noises[t]
        means[t], covariances[t] = mean, total
    return means, covariances


def squared_errors(means: Tensor, covariances: Tensor) -> Tensor:
    """E‖e_t‖², [T]."""
    return means.square().sum(-1) + covariances.diagonal(dim1=-2, dim2=-1).sum(-1)


def simulate(
    sample: Callable[..., Estimates],
    tables: Tables,
    path: Tensor,
    eta: Tensor,
    times: Sequence[int],
    num: int,
    seed: int = 0,
    sizes: Sizes = ONE,
) -> Tensor:
    """e_t of R = `num` replicates at these times, [len(times), R, d]."""
    generator = torch.Generator().manual_seed(seed)
    direction, previous, errors = torch.zeros(num, path.shape[1], dtype=torch.float64), path[0], []
    for t, (theta, share) in enumerate(zip(path, eta.tolist(), strict=True)):
        gradient, correction = sample(tables, theta, previous, share, sizes, num, generator)
        direction, previous = corrected_momentum(direction, gradient, correction, share), theta
        if t in times:
            errors.append(direction - tables.gradient(theta))
        if t == max(times):
            break
    return torch.stack(errors)


def fresh_errors(tables: Tables, path: Tensor) -> Tensor:
    """tr Cov(g(θ_t)), [T]."""
    pieces = [tables.gradient_covariance(points) for points in path.split(CHUNK)]
    return torch.cat(pieces).diagonal(dim1=-2, dim2=-1).sum(-1)


def fitted_slope(values: Tensor, first: int = FIT[0], last: int = FIT[1]) -> float:
    """Least-squares slope of log values over log t at 200 times, evenly spread over log t."""
    times = np.unique(np.geomspace(first, min(last, len(values) - 1), 200).astype(int))
    return float(np.polyfit(np.log(times), np.log(values.numpy()[times]), 1)[0])


def _quadrature(nodes: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss and Legendre on [0, 1]."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    return ((x + 1) / 2).tolist(), (weights / 2).tolist()


# ---------------------------------------------------------------------- the figure

NUM_ITERATIONS = 10_001
FIRST_STEP = 0.4
DOTS = np.unique(np.geomspace(1, NUM_ITERATIONS - 1, 13).astype(int)).tolist()


def measure(name: str, tables: Tables, num_replicates: int) -> dict[str, Any]:
    """Lines, dots and slopes of one method, as ratios to tr Cov(g(θ_t))."""
    began, method = time.process_time(), METHODS[name]
    path, eta = method.path(tables.mdp, NUM_ITERATIONS, FIRST_STEP), method.momenta(NUM_ITERATIONS)
    fresh = fresh_errors(tables, path)
    exact = squared_errors(*exact_moments(method.increment, tables, path, eta)) / fresh
    squares = simulate(method.sample, tables, path, eta, DOTS, num_replicates).square().sum(-1) / fresh[DOTS, None]
    error_bars = squares.std(1) / num_replicates**0.5
    times = np.unique(np.geomspace(1, NUM_ITERATIONS - 1, 400).astype(int)).tolist()
    result = {
        "slope": fitted_slope(exact),
        "slope_in_theory": method.slope,
        "times": times,
        "exact": rounded(exact[times]),
        "simulated_times": DOTS,
        "simulated": rounded(squares.mean(1)),
        "standard_errors": rounded(error_bars),
        "largest_z": float(((squares.mean(1) - exact[DOTS]) / error_bars).abs().max()),
    }
    if name in CORRECTED:
        plain = squared_errors(*exact_moments(momentum, tables, path, eta)) / fresh
        result |= {"uncorrected": rounded(plain[times]), "slope_uncorrected": fitted_slope(plain)}
    return {**result, "seconds": round(time.process_time() - began, 1)}


def rounded(values: Tensor) -> list[float]:
    """To five digits."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def run(num_replicates: int) -> None:
    """Measure what the results lack, and store it."""
    tables = Tables(small_mdp())
    for name in METHODS:
        done = load()
        if done["num_replicates"] == num_replicates and name in done["methods"]:
            continue
        if done["num_replicates"] != num_replicates:
            done = {**done, "num_replicates": num_replicates, "methods": {}}
        done["methods"][name] = measure(name, tables, num_replicates)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(done))
        summary = {key: value for key, value in done["methods"][name].items() if not isinstance(value, list)}
        print(name, summary, flush=True)


def load() -> dict[str, Any]:
    """The stored results."""
    if RESULTS.is_file():
        return json.loads(RESULTS.read_text())
    return {
        "quantity": "E|d_t - grad J(theta_t)|^2 / tr Cov(g(theta_t)), one trajectory a gradient, no baseline",
        "path": f"circle of radius 0.25 with chords alpha_t = {FIRST_STEP} (2/(t+2))^p",
        "fit": FIT,
        "num_replicates": 0,
        "methods": {},
    }


def plot() -> None:
    """Draw the figure from the stored results."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 5), constrained_layout=True)
    for index, (name, result) in enumerate(load()["methods"].items()):
        colour, method = f"C{index}", METHODS[name]
        slopes = f"slope {result['slope']:.2f} (theory {result['slope_in_theory']:.2f})"
        label = f"{method.label}: " + slopes.replace("-", "−")
        axis.plot(result["times"], result["exact"], color=colour, label=label)
        axis.plot(result["simulated_times"], result["simulated"], "o", color=colour, markersize=4)
        if "uncorrected" in result:
            axis.plot(result["times"], result["uncorrected"], "--", color=colour, linewidth=1, alpha=0.8)
    axis.plot([], [], "--", color="grey", linewidth=1, label="same schedules without the correction")
    axis.plot([], [], "o", color="grey", markersize=4, label="simulation")
    axis.set(xscale="log", yscale="log", xlabel="iteration t", ylim=(6e-5, 2))
    axis.set_ylabel(r"$E\|d_t - \nabla J(\theta_t)\|^2 \; / \; \mathrm{tr\,Cov}\,g(\theta_t)$")
    axis.set_title("Squared error of the direction over that of one fresh gradient, on a given path", fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    print(PICTURE)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "plot"])
    parser.add_argument("--num-replicates", type=int, default=1000, help="of the simulation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "run":
        run(arguments.num_replicates)
    plot()


if __name__ == "__main__":
    main()
