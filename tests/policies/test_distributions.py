"""Oracles: torch.distributions in float64, quadrature, exact probabilities."""

import itertools
import math

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from torch import distributions as reference

from rlopt.policies import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical, SquashedGaussian, draw_noise
from rlopt.policies.distributions import Distribution, log_tanh_jacobian, noise_size

# torch's own, at the first forward-mode derivative in a process
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64
# The 0.999 quantile of χ² with k degrees of freedom
CHI_SQUARE = {1: 10.83, 3: 16.27, 4: 18.47, 5: 20.52, 7: 24.32, 11: 31.26}


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(mine, theirs, tolerance=1e-12):
    assert mine.shape == theirs.shape
    assert float((mine - theirs).abs().max()) <= tolerance


def examples():
    """One small distribution of every kind, an action of it, and the parameters that gradients go to."""
    logits = normal(5, 6)
    return {
        "categorical": (Categorical.from_logits, logits, torch.tensor([0, 5, 2, 3, 3])),
        "multi": (lambda x: MultiCategorical.from_logits(x, (1, 2, 3)), logits, torch.tensor([[0, 1, 2]] * 5)),
        "bernoulli": (Bernoulli, logits, (normal(5, 6, seed=1) > 0).long()),
        "gaussian": (lambda x: DiagonalGaussian(x, 0.1 * x[0]), logits, normal(5, 6, seed=2)),
        "squashed": (lambda x: SquashedGaussian(x, 0.1 * x[0]), logits, normal(5, 6, seed=2).tanh()),
    }


KINDS = tuple(examples())


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_categorical_agrees_with_torch(scale):
    logits = normal(50, 7, scale=scale)
    mine, theirs = Categorical.from_logits(logits), reference.Categorical(logits=logits)
    for action in range(7):
        actions = torch.full((50,), action)
        close(mine.log_prob(actions), theirs.log_prob(actions))
    close(mine.entropy(), theirs.entropy())
    assert torch.equal(mine.mode(), logits.argmax(-1))


def test_multi_categorical_is_the_product_of_its_parts():
    sizes = (2, 3, 4)
    logits = normal(11, sum(sizes))
    mine = MultiCategorical.from_logits(logits, sizes)
    parts = [reference.Categorical(logits=part) for part in logits.split(sizes, -1)]
    total = torch.zeros(11, dtype=F64)
    for action in itertools.product(*(range(n) for n in sizes)):
        actions = torch.tensor([action] * 11)
        expected = sum(part.log_prob(a) for part, a in zip(parts, actions.unbind(-1)))
        close(mine.log_prob(actions), expected)
        total += mine.log_prob(actions).exp()
    close(total, torch.ones(11, dtype=F64))
    close(mine.entropy(), sum(part.entropy() for part in parts))
    close(mine.mode().double(), torch.stack([part.probs.argmax(-1) for part in parts], -1).double())


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_bernoulli_agrees_with_torch(scale):
    logits = normal(50, 4, scale=scale)
    mine, theirs = Bernoulli(logits), reference.Bernoulli(logits=logits)
    for bits in itertools.product((0, 1), repeat=4):
        actions = torch.tensor([bits] * 50)
        close(mine.log_prob(actions), theirs.log_prob(actions.double()).sum(-1))
    p = torch.sigmoid(logits.abs())
    q = torch.sigmoid(-logits.abs())
    close(mine.entropy(), -(p * p.log() + q * q.log()).sum(-1))
    assert torch.equal(mine.mode(), (logits > 0).long())


def test_gaussian_agrees_with_torch():
    mean, log_std, actions = normal(50, 3), normal(3, seed=1), normal(50, 3, seed=2, scale=4.0)
    mine = DiagonalGaussian(mean, log_std)
    theirs = reference.Independent(reference.Normal(mean, log_std.exp().expand_as(mean)), 1)
    close(mine.log_prob(actions), theirs.log_prob(actions), 1e-11)
    close(mine.entropy(), theirs.entropy())
    assert torch.equal(mine.mode(), mean)


def test_gaussian_takes_one_log_std_a_state():
    mean, log_std = normal(5, 3), normal(5, 3, seed=1)
    mine = DiagonalGaussian(mean, log_std)
    close(mine.entropy(), reference.Independent(reference.Normal(mean, log_std.exp()), 1).entropy())
    assert mine.log_prob(mean).shape == (5,)


def test_log_probs_have_one_number_a_row():
    """Detail 25: components are summed; (B, A) would broadcast silently in a loss."""
    for make, parameters, actions in examples().values():
        distribution = make(parameters)
        assert isinstance(distribution, Distribution)
        assert distribution.log_prob(actions).shape == (5,)
        assert distribution.entropy().shape == (5,)


def test_gaussian_density_integrates_to_one():
    """Detail 23."""
    grid = torch.linspace(-30, 30, 200_001, dtype=F64)
    density = DiagonalGaussian(torch.tensor([[0.7]], dtype=F64), torch.tensor([0.5], dtype=F64))
    close(torch.trapezoid(density.log_prob(grid[:, None]).exp(), grid), torch.tensor(1.0, dtype=F64), 1e-10)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.8, -0.5), (-1.5, -1.0), (0.3, -2.0)])
def test_squashed_density_integrates_to_one(mean, log_std):
    # Over actions in (−1, 1), on a grid that is uniform before the tanh.
    pre = torch.linspace(-7, 7, 400_001, dtype=F64)
    actions = pre.tanh()
    squashed = SquashedGaussian(torch.tensor([[mean]], dtype=F64), torch.tensor([log_std], dtype=F64))
    mass = torch.trapezoid(squashed.log_prob(actions[:, None]).exp(), actions)
    assert float(mass) == pytest.approx(1.0, abs=1e-6)


def test_squashed_log_prob_agrees_with_torch_and_sb3():
    mean, log_std = normal(40, 2), normal(2, seed=1, scale=0.3)
    actions = (mean + log_std.exp() * normal(40, 2, seed=3)).tanh()
    mine = SquashedGaussian(mean, log_std)
    normal_ = reference.Normal(mean, log_std.exp().expand_as(mean))
    theirs = reference.TransformedDistribution(normal_, reference.TanhTransform()).log_prob(actions).sum(-1)
    close(mine.log_prob(actions), theirs, 1e-8)
    sb3 = SquashedDiagGaussianDistribution(2).proba_distribution(mean, log_std)
    # SB3 adds 1e-6 inside the logarithm
    allowance = torch.log1p(1e-6 / (1 - actions.square())).sum(-1) + 1e-6
    assert bool(((mine.log_prob(actions) - sb3.log_prob(actions)).abs() <= allowance).all())
    assert torch.equal(mine.mode(), mean.tanh())


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.8, -0.5), (-2.5, -1.0), (0.3, -2.0), (1.0, 0.5)])
def test_squashed_entropy_agrees_with_fine_quadrature(mean, log_std):
    pre = torch.linspace(mean - 12 * math.exp(log_std), mean + 12 * math.exp(log_std), 400_001, dtype=F64)
    density = reference.Normal(torch.tensor(mean, dtype=F64), math.exp(log_std)).log_prob(pre).exp()
    correction = torch.trapezoid(density * log_tanh_jacobian(pre), pre)
    expected = 0.5 + 0.5 * math.log(2 * math.pi) + log_std + float(correction)
    squashed = SquashedGaussian(torch.tensor([[mean]], dtype=F64), torch.tensor([log_std], dtype=F64))
    # 16 nodes: exact to 1e-6 up to a standard deviation of 0.6, to 2e-3 at 1.65
    assert float(squashed.entropy()[0]) == pytest.approx(expected, abs=1e-6 if log_std < -0.4 else 3e-3)


def test_squashed_entropy_agrees_with_monte_carlo():
    squashed = SquashedGaussian(torch.tensor([[0.4, -0.7]], dtype=F64), torch.tensor([-0.3, -1.0], dtype=F64))
    wide = SquashedGaussian(squashed.mean.expand(200_000, 2), squashed.log_std)
    log_probs = wide.log_prob(wide.sample(normal(200_000, 2)))
    standard_error = float(log_probs.std()) / math.sqrt(200_000)
    assert float(squashed.entropy()[0]) == pytest.approx(-float(log_probs.mean()), abs=4 * standard_error)


def test_log_tanh_jacobian_survives_large_arguments():
    x = torch.tensor([-500.0, -30.0, -12.0, -1.0, 0.0, 1.0, 12.0, 30.0, 500.0], dtype=F64, requires_grad=True)
    value = log_tanh_jacobian(x)
    expected = math.log(4.0) - 2 * x.detach().abs() - 2 * torch.log1p(torch.exp(-2 * x.detach().abs()))
    close(value.detach(), expected, 1e-8)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    close(gradient, -2 * x.detach().tanh(), 1e-8)


# ---------------------------------------------------------------------- sampling


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_gumbel_argmax_samples_with_the_right_frequencies():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    noise = draw_noise(spaces.Discrete(5), (100_000,), torch.Generator().manual_seed(0))
    samples = Categorical.from_logits(logits.expand(100_000, 5)).sample(noise)
    assert chi_square(torch.bincount(samples, minlength=5).double(), logits.double().softmax(-1)) < CHI_SQUARE[4]


def test_chi_square_notices_wrong_frequencies():
    """Negative control of the checks in this section: noise of the wrong kind fails them."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    noise = torch.randn(100_000, 5, generator=torch.Generator().manual_seed(0))
    samples = Categorical.from_logits(logits.expand(100_000, 5)).sample(noise)
    assert chi_square(torch.bincount(samples, minlength=5).double(), logits.double().softmax(-1)) > 10 * CHI_SQUARE[4]


def test_multi_categorical_samples_the_joint_probabilities():
    """Detail 37: components are independent."""
    logits = torch.tensor([0.3, -0.2, 1.0, 0.0, -1.0, 0.5])
    space = spaces.MultiDiscrete([2, 4])
    noise = draw_noise(space, (100_000,), torch.Generator().manual_seed(1))
    samples = MultiCategorical.from_logits(logits.expand(100_000, 6), (2, 4)).sample(noise)
    joint = (logits[:2].double().softmax(-1)[:, None] * logits[2:].double().softmax(-1)).flatten()
    assert chi_square(torch.bincount(samples[:, 0] * 4 + samples[:, 1], minlength=8).double(), joint) < CHI_SQUARE[7]


def test_bernoulli_samples_the_joint_probabilities():
    logits = torch.tensor([0.8, -1.2])
    noise = draw_noise(spaces.MultiBinary(2), (100_000,), torch.Generator().manual_seed(2))
    samples = Bernoulli(logits.expand(100_000, 2)).sample(noise)
    p = logits.double().sigmoid()
    joint = torch.stack([(1 - p[0]) * (1 - p[1]), (1 - p[0]) * p[1], p[0] * (1 - p[1]), p[0] * p[1]])
    assert chi_square(torch.bincount(samples[:, 0] * 2 + samples[:, 1], minlength=4).double(), joint) < CHI_SQUARE[3]


@pytest.mark.parametrize("kind", [DiagonalGaussian, SquashedGaussian])
def test_gaussians_sample_the_right_quantiles(kind):
    mean, log_std = torch.tensor([[0.3]]), torch.tensor([-0.5])
    noise = draw_noise(spaces.Box(-1, 1, (1,)), (100_000,), torch.Generator().manual_seed(3))
    samples = kind(mean.expand(100_000, 1), log_std).sample(noise)[:, 0].double()
    edges = reference.Normal(mean[0].double(), log_std.exp().double()).icdf(torch.linspace(0, 1, 13, dtype=F64)[1:-1])
    edges = edges.tanh() if kind is SquashedGaussian else edges
    counts = torch.bincount(torch.bucketize(samples, edges), minlength=12).double()
    assert chi_square(counts, torch.full((12,), 1 / 12, dtype=F64)) < CHI_SQUARE[11]


def test_noise_has_the_size_that_the_distribution_reads():
    generator = torch.Generator().manual_seed(0)
    for space, size in (
        (spaces.Discrete(5), 5),
        (spaces.MultiDiscrete([2, 4]), 6),
        (spaces.MultiBinary(3), 3),
        (spaces.Box(-1, 1, (2, 2)), 4),
    ):
        assert noise_size(space) == size
        noise = draw_noise(space, (7, 3), generator)
        assert noise.shape == (7, 3, size)
        assert noise.dtype == torch.float32
        assert bool(noise.isfinite().all())


def test_the_same_noise_gives_the_same_action():
    noises = {"categorical": 6, "multi": 6, "bernoulli": 6, "gaussian": 6, "squashed": 6}
    for kind, (make, parameters, _) in examples().items():
        noise = normal(5, noises[kind], seed=9)
        assert torch.equal(make(parameters).sample(noise), make(parameters).sample(noise))


# ---------------------------------------------------------------------- masks, extremes, derivatives


def test_masked_logits_give_finite_entropy_and_gradient():
    """sb3-contrib#247: the entropy of masked actions is that of the allowed ones alone."""
    logits = normal(4, 2000).requires_grad_()
    mask = torch.zeros(4, 2000, dtype=torch.bool)
    mask[:, [3, 7, 1999]] = True
    distribution = Categorical.from_logits(logits.masked_fill(~mask, -torch.inf))
    allowed = reference.Categorical(logits=logits.detach()[:, [3, 7, 1999]])
    close(distribution.entropy().detach(), allowed.entropy())
    (gradient,) = torch.autograd.grad(distribution.entropy().sum() + distribution.log_prob(torch.full((4,), 7)).sum(), logits)
    assert bool(gradient.isfinite().all())
    assert float(gradient[~mask].abs().max()) == 0.0


def test_all_but_one_masked_is_certain():
    """SB3#1596: a wide float32 action space with a single choice left."""
    logits = torch.full((1, 5000), -torch.inf)
    logits[0, 4321] = 0.0
    distribution = Categorical.from_logits(logits)
    assert float(distribution.entropy()) == 0.0
    assert float(distribution.log_prob(torch.tensor([4321]))) == 0.0
    noise = draw_noise(spaces.Discrete(5000), (1,), torch.Generator().manual_seed(0))
    assert int(distribution.sample(noise)) == 4321


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", ["categorical", "multi", "bernoulli"])
def test_extreme_logits_give_finite_values_and_gradients(kind, dtype):
    make, _, actions = examples()[kind]
    logits = torch.tensor([[1e4, -1e4, 0.0, 1e4, 88.0, -88.0]] * 5, dtype=dtype, requires_grad=True)
    distribution = make(logits)
    (gradient,) = torch.autograd.grad(distribution.log_prob(actions).sum() + distribution.entropy().sum(), logits)
    assert bool(distribution.entropy().isfinite().all())
    assert float(distribution.entropy().detach().min()) >= 0.0
    assert bool(gradient.isfinite().all())


def test_saturated_squashed_actions_have_finite_log_probs_and_gradients():
    for dtype in (torch.float32, F64):
        mean = torch.tensor([[50.0], [-50.0], [0.0]], dtype=dtype, requires_grad=True)
        log_std = torch.zeros(1, dtype=dtype, requires_grad=True)
        distribution = SquashedGaussian(mean, log_std)
        log_prob = distribution.log_prob(distribution.mode().detach())
        gradients = torch.autograd.grad(log_prob.sum() + distribution.entropy().sum(), [mean, log_std])
        assert bool(log_prob.isfinite().all())
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind):
    make, parameters, actions = examples()[kind]
    inputs = parameters.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: make(x).log_prob(actions), (inputs,))
    assert torch.autograd.gradcheck(lambda x: make(x).entropy(), (inputs,))


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_work_under_functional_transforms(kind):
    make, parameters, actions = examples()[kind]

    def objective(x):
        return (make(x).log_prob(actions) + make(x).entropy()).sum()

    gradient = torch.func.grad(objective)(parameters)
    plain = parameters.clone().requires_grad_()
    (expected,) = torch.autograd.grad(objective(plain), plain)
    close(gradient, expected)

    tangent = normal(5, 6, seed=4)
    _, forward = torch.func.jvp(objective, (parameters,), (tangent,))
    close(forward, (gradient * tangent).sum(), 1e-11)

    # a Hessian-vector product, forward over reverse
    _, product = torch.func.jvp(torch.func.grad(objective), (parameters,), (tangent,))
    plain = parameters.clone().requires_grad_()
    (first,) = torch.autograd.grad(objective(plain), plain, create_graph=True)
    (expected,) = torch.autograd.grad((first * tangent).sum(), plain)
    close(product, expected, 1e-10)

    batch = torch.stack([parameters, parameters + tangent])
    mapped = torch.func.vmap(lambda x: make(x).log_prob(actions) + make(x).entropy())(batch)
    separate = torch.stack([make(x).log_prob(actions) + make(x).entropy() for x in batch])
    close(mapped, separate)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "squashed"])
def test_pull_back_is_the_gradient_of_log_prob_and_entropy(kind, entropy_weight):
    make, parameters, actions = examples()[kind]
    weights = normal(5, seed=8)
    if kind == "gaussian":
        inputs = [parameters.clone().requires_grad_(), (0.1 * parameters[0]).requires_grad_()]
        distribution = DiagonalGaussian(*inputs)
    else:
        inputs = [parameters.clone().requires_grad_()]
        distribution = make(*inputs)
    objective = (weights * distribution.log_prob(actions)).sum() + entropy_weight * distribution.entropy().sum()
    expected = torch.autograd.grad(objective, inputs)
    with torch.no_grad():
        got = distribution.pull_back(actions, weights, entropy_weight)
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected):
        close(mine, theirs)


def test_pull_back_of_masked_logits_is_finite():
    logits = normal(4, 6)
    logits[:, ::2] = -torch.inf
    (gradient,) = Categorical.from_logits(logits).pull_back(torch.full((4,), 3), normal(4, seed=1), 0.5)
    assert bool(gradient.isfinite().all())
    assert float(gradient[:, ::2].abs().max()) == 0.0
