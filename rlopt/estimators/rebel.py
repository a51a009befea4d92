"""REBEL: a policy update as one least-squares problem, without critic, clipping or importance ratios.

The change of log-probability *differences* is regressed on scaled reward *differences* of samples that share their start
(a prompt, an initial state), so that the normaliser of the exact step π_{t+1} ∝ π_t e^{ηr} cancels. A large η is a large
step. Over samples y_i of one group the loss is a variance: of

    d_i = ln π_θ(y_i) − ln π_t(y_i) − η r_i

Log-probabilities are *sums* over an action sequence, never means, and old ones come from the same forward pass as new ones.

Source: Gao et al., arXiv:2404.16767. Letters: N samples, P groups, K samples of a group.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rlopt.arguments import check_choice, check_number

Form = Literal["code", "paper"]
KLMode = Literal["reward", "prox"]

# How far comparisons may be from antisymmetric, and outside [−1, 1].
ROUNDING = 1e-5


def rebel_residuals(
    log_probs: Tensor,
    old_log_probs: Tensor,
    rewards: Tensor,
    eta: float | Tensor,
    ref_log_probs: Tensor | None = None,
    beta: float = 0.0,
    kl_mode: KLMode = "reward",
) -> Tensor:
    """d, [N]: what has no variance within a group where the regression is solved.

    Without a reference policy d = (lp − old) − η r. With one, regularised towards it by β KL(π ‖ π_ref), both of these
    have the fixed point π* ∝ π_ref e^{r/β}:

        "reward"   d = (lp − old) − η (r − β (old − ref))     contracts by |1 − ηβ|, diverges for ηβ > 2
        "prox"     d = (lp − old) + ηβ (lp − ref) − η r       contracts by 1/(1 + ηβ), always

    Only `log_probs` is differentiated.

    Args:
        log_probs: ln π_θ(y_i), [N], summed over the sequence.
        old_log_probs: ln π_t(y_i), [N], of the policy at the start of the iteration.
        rewards: r_i, [N].
        eta: η > 0.
        ref_log_probs: ln π_ref(y_i), [N]; needed if `beta` is not 0.
        beta: β ≥ 0.
        kl_mode: where the KL goes.

    Raises:
        ValueError: a shape, a precision below float32, η or β out of range, β without reference.
    """
    _check_rows(log_probs=log_probs, old_log_probs=old_log_probs, rewards=rewards)
    _check_eta(eta)
    check_number("beta", beta, at_least=0)
    check_choice("kl_mode", kl_mode, get_args(KLMode))
    change = log_probs - old_log_probs.detach()
    rewards = rewards.detach()
    if not beta:
        return change - eta * rewards
    if ref_log_probs is None:
        raise ValueError(f"ref_log_probs: expected the reference's log-probabilities [N] with beta={beta:g}, got None")
    _check_rows(log_probs=log_probs, ref_log_probs=ref_log_probs)
    reference = ref_log_probs.detach()
    if kl_mode == "reward":
        return change - eta * (rewards - beta * (old_log_probs.detach() - reference))
    return change + eta * beta * (log_probs - reference) - eta * rewards


def rebel_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    rewards: Tensor,
    groups: Tensor,
    eta: float | Tensor,
    form: Form = "code",
    ref_log_probs: Tensor | None = None,
    beta: float = 0.0,
    kl_mode: KLMode = "reward",
) -> Tensor:
    """Mean over groups of the mean over ordered pairs i ≠ j of (d_i − d_j)², in O(N); scalar, to be minimised.

    That is twice the unbiased variance of d within a group. At θ_t its gradient is −4η times that of REINFORCE with
    leave-one-out baselines; a constant added to r or `old_log_probs` within a group changes nothing.

    Arguments beside these are those of `rebel_residuals`.

    Args:
        groups: integers [N]; samples of one number share their start. Whole groups only.
        form: "code" is this, as the authors compute it; "paper" divides it by η² (eq. 6 of the paper). One minimiser.

    Raises:
        ValueError: a group with one member; what `rebel_residuals` raises.
    """
    check_choice("form", form, get_args(Form))
    residuals = rebel_residuals(log_probs, old_log_probs, rewards, eta, ref_log_probs, beta, kl_mode)
    loss = (2.0 * within_group_squares(residuals, groups) / (group_sizes(groups) - 1)).mean()
    return loss / eta**2 if form == "paper" else loss


def rebel_coefficients(
    log_probs: Tensor,
    old_log_probs: Tensor,
    rewards: Tensor,
    groups: Tensor,
    eta: float | Tensor,
    form: Form = "code",
    ref_log_probs: Tensor | None = None,
    beta: float = 0.0,
    kl_mode: KLMode = "reward",
) -> Tensor:
    """c [N], constants with ∇ Σ_i c_i ln π_θ(y_i) = ∇ `rebel_loss` at the θ that `log_probs` are of.

    For groups that do not fit in memory: all `log_probs` are computed without gradient, then Σ c_i ln π_θ(y_i) is
    differentiated in pieces of any size. Arguments and errors are those of `rebel_loss`.
    """
    check_choice("form", form, get_args(Form))
    residuals = rebel_residuals(log_probs.detach(), old_log_probs, rewards, eta, ref_log_probs, beta, kl_mode)
    index, counts = _index(groups)
    others = (counts[index] - 1).to(residuals.dtype)
    coefficients = 4.0 * (residuals - _means(residuals, index, counts)[index]) / (others * len(counts))
    if beta and kl_mode == "prox":
        coefficients = coefficients * (1.0 + eta * beta)
    return coefficients / eta**2 if form == "paper" else coefficients


def rebel_advantage_loss(log_ratio: Tensor, kl: Tensor, advantages: Tensor, eta: float | Tensor) -> Tensor:
    """(ln π_θ/π_old(a | s) + KL(π_old(· | s) ‖ π_θ(· | s)) − η Â(s, a))², [B]: one action a state, a ~ π_old.

    The KL is minus the mean of the log-ratio under π_old: it stands for the second sample of a pair. Where Â has mean 0
    under π_old the mean of this is half the mean of the pair loss; what depends on the state alone and is added to Â
    does not move its minimiser. Gradient at θ_old: −2ηÂ ∇ln π. With advantages of variance 1 a solved step has a KL of
    about η²/2.

    Args:
        log_ratio: ln π_θ(a | s) − ln π_old(a | s), [B].
        kl: in closed form, [B], see `divergence_from` of the distributions; it keeps its gradient.
        advantages: Â, [B].
        eta: η > 0.

    Raises:
        ValueError: a shape, a precision below float32, η out of range.
    """
    _check_rows(log_ratio=log_ratio, kl=kl, advantages=advantages)
    _check_eta(eta)
    return (log_ratio + kl - eta * advantages.detach()).square()


def rebel_all_actions_loss(
    log_probabilities: Tensor, old_log_probabilities: Tensor, values: Tensor, eta: float | Tensor
) -> Tensor:
    """Var_{a ~ π_old}(ln π_θ/π_old(a | s) − η Q(s, a)), [B]: no action is drawn, every one is counted.

    Its zero is π_θ ∝ π_old e^{ηQ}. Actions that π_old never takes count nothing.

    Args:
        log_probabilities: ln π_θ(· | s), [B, A], normalised.
        old_log_probabilities: ln π_old(· | s), [B, A].
        values: Q(s, ·), or advantages, [B, A].
        eta: η > 0.

    Raises:
        ValueError: a shape, a precision below float32, η out of range.
    """
    _check_rows(log_probabilities=log_probabilities, old_log_probabilities=old_log_probabilities, values=values)
    _check_eta(eta)
    old, values = old_log_probabilities.detach(), values.detach()
    taken = old > -torch.inf
    # −inf − (−inf) would be NaN, and its gradient too
    residuals = log_probabilities.masked_fill(~taken, 0.0) - old.masked_fill(~taken, 0.0) - eta * values
    probabilities = old.exp()
    mean = (probabilities * residuals).sum(-1, keepdim=True)
    return (probabilities * (residuals - mean).square()).sum(-1)


def eta_from_std(rewards: Tensor, kappa: float = 1.0, groups: Tensor | None = None) -> Tensor:
    """η = κ / std(r); scalar, at least 0. An exact step then has a KL of about κ²/2 a sample.

    Where rewards do not vary every η asks for the same, and κ is returned.

    Args:
        rewards: [N].
        kappa: κ > 0.
        groups: [N]; with them only what rewards vary by within groups counts.

    Raises:
        ValueError: κ, a shape, a group with one member, fewer than two rewards.
    """
    check_number("kappa", kappa, positive=True)
    variance = _reward_variance(rewards, groups)
    return torch.where(variance > 0, kappa / variance.sqrt(), torch.full_like(variance, kappa))


def eta_from_kl(rewards: Tensor, target: float, groups: Tensor | None = None) -> Tensor:
    """η = √(2 ε / Var r), with which an exact step has KL(π_{t+1} ‖ π_t) ≈ ½ η² Var r = ε; scalar.

    `rewards` [N] may be advantages. Where they do not vary every η asks for the same, and √(2ε) is returned.

    Args:
        rewards: [N].
        target: ε > 0, in nats.
        groups: [N]; with them only what rewards vary by within groups counts.

    Raises:
        ValueError: ε, a shape, a group with one member, fewer than two rewards.
    """
    check_number("target", target, positive=True)
    return eta_from_std(rewards, (2.0 * target) ** 0.5, groups)


def preference_rewards(comparisons: Tensor) -> Tensor:
    """r_i = (1/K) Σ_{j≠i} ℓ(y_i, y_j), [G, K]: how samples of one group do against each other.

    The estimate of the self-play reward E_{y ~ π_t} ℓ(y_i, y) whose group regression has the population's minimiser: two
    rewards of a group share their comparison, and 1/(K − 1) would make the step K/(K − 1) times too large.

    Args:
        comparisons: ℓ(y_i, y_j) = 2 P(y_i ≻ y_j) − 1, [G, K, K] in [−1, 1], antisymmetric.

    Raises:
        ValueError: a shape, K < 2, numbers outside [−1, 1], not antisymmetric.
    """
    if comparisons.ndim != 3 or comparisons.shape[1] != comparisons.shape[2] or comparisons.shape[1] < 2:
        raise ValueError(f"comparisons: expected shape (G, K, K) with K of at least 2, got {tuple(comparisons.shape)}")
    if not bool((comparisons.abs() <= 1 + ROUNDING).all()):
        raise ValueError("comparisons: expected numbers in [−1, 1]")
    if not bool(((comparisons + comparisons.transpose(1, 2)).abs() <= ROUNDING).all()):
        raise ValueError("comparisons: expected ℓ(y, y') = −ℓ(y', y), and 0 of a sample with itself")
    return comparisons.sum(-1) / comparisons.shape[-1]


def explained(loss: Tensor, first_loss: Tensor) -> Tensor:
    """1 − L(θ) / L(θ_t): 0 if nothing was learned, 1 if the regression is solved; NaN if there was nothing to learn."""
    ratio = loss / first_loss
    return torch.where(first_loss > 0, 1.0 - ratio, torch.full_like(ratio, torch.nan))


def sign_alignment(log_ratio: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
    """Share of pairs of a group in whose order by ln π_θ/π_t and by reward agree; scalar in [0, 1].

    Pairs of equal rewards do not count; NaN if there are no others.

    Args:
        log_ratio, rewards, groups: [N].

    Raises:
        ValueError: a shape, a group with one member.
    """
    _check_rows(log_ratio=log_ratio, rewards=rewards)
    index, counts = _index(groups)
    if len(index) != len(rewards):
        raise ValueError(f"groups: expected {len(rewards)} integers, got {len(index)}")
    order, sizes = index.argsort(stable=True), counts[index]
    agreeing, counted = log_ratio.new_zeros(()), log_ratio.new_zeros(())
    for size in counts.unique().tolist():  # a few at most
        members = order[sizes[order] == size].view(-1, size)
        first, second = torch.combinations(torch.arange(size, device=members.device)).unbind(1)
        moved = log_ratio[members[:, first]] - log_ratio[members[:, second]]
        wanted = rewards[members[:, first]] - rewards[members[:, second]]
        counted += (wanted != 0).sum()
        agreeing += ((moved.sign() == wanted.sign()) & (wanted != 0)).sum()
    return agreeing / counted


def approx_kl(log_ratio: Tensor) -> Tensor:
    """½ E[(ln π_θ/π_t)²], the KL of a small step to second order; scalar. `log_ratio` is [N]."""
    return 0.5 * log_ratio.square().mean()


def group_sizes(groups: Tensor) -> Tensor:
    """How many members each group has, [P], in the order of their numbers.

    Raises:
        ValueError: `groups` are no integers [N], or a group has one member.
    """
    return _index(groups)[1]


def within_group_squares(x: Tensor, groups: Tensor) -> Tensor:
    """Σ_i (x_i − mean of its group)² of every group, [P], in the order of their numbers.

    Args:
        x: [N].
        groups: integers [N].

    Raises:
        ValueError: a shape, a group with one member.
    """
    index, counts = _index(groups)
    if len(index) != len(x):
        raise ValueError(f"groups: expected {len(x)} integers, got {len(index)}")
    # The mean keeps its gradient: the first derivative does not need it, second ones do.
    squares = (x - _means(x, index, counts)[index]).square()
    return squares.new_zeros(len(counts)).index_add(0, index, squares)


def _index(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Of which group every sample is, counted from 0, [N], and how many each has, [P]."""
    if groups.ndim != 1 or groups.dtype.is_floating_point or groups.dtype == torch.bool or not len(groups):
        raise ValueError(f"groups: expected integers [N], got {groups.dtype} {tuple(groups.shape)}")
    numbers, index, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    if bool((counts < 2).any()):
        alone = int(numbers[counts < 2][0])
        raise ValueError(f"groups: expected at least two members in every group, group {alone} has one")
    return index, counts


def _means(x: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """[P]."""
    return x.new_zeros(len(counts)).index_add(0, index, x) / counts


def _reward_variance(rewards: Tensor, groups: Tensor | None) -> Tensor:
    """Unbiased variance, over all or pooled over groups; scalar."""
    if groups is not None:
        squares = within_group_squares(rewards, groups)
        return squares.sum() / (len(rewards) - len(squares))
    if rewards.ndim != 1 or len(rewards) < 2:
        raise ValueError(f"rewards: expected at least two numbers [N], got shape {tuple(rewards.shape)}")
    return rewards.var()


def _check_rows(**tensors: Tensor) -> None:
    """Raises ValueError unless all have the shape of the first, which must be in float32 or float64."""
    (name, first), *others = tensors.items()
    if first.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: expected float32 or float64, got {first.dtype}; differences of long sums need the digits")
    for other, tensor in others:
        if tensor.shape != first.shape:
            raise ValueError(f"{other}: expected the shape {tuple(first.shape)} of {name}, got {tuple(tensor.shape)}")


def _check_eta(eta: float | Tensor) -> None:
    if isinstance(eta, Tensor) and (eta.ndim or not eta.dtype.is_floating_point):
        raise ValueError(f"eta: expected one number, got {eta.dtype} {tuple(eta.shape)}")
    if not isinstance(eta, Tensor):
        check_number("eta", eta, positive=True)
