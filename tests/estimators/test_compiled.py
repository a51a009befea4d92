"""`torch.compile` takes the estimators as one graph, derivatives included; oracle: the same calls without it."""

import pytest
import torch

from rlopt.estimators import hessian_vector_product, policy_gradient
from tests.estimators.test_networks import Problem

slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [
        "MlpPolicy, discrete",
        *(pytest.param(f"MlpPolicy, {name}", marks=slow) for name in ("box", "squashed box", "binary")),
    ],
)
def test_compiled_gradients_and_products_are_the_same(name):
    torch._dynamo.reset()
    problem = Problem(name, 0.1)

    def both(theta, rollout, psi, vector):
        gradient = policy_gradient(problem.functional, theta, rollout, psi)
        return gradient, hessian_vector_product(problem.functional, theta, rollout, psi, vector)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    arguments = problem.rollout, problem.psi
    for theta, vector in ((problem.theta, problem.vector), (problem.theta + 0.1, 2 * problem.vector)):
        for value, expected in zip(compiled(theta, *arguments, vector), both(theta, *arguments, vector)):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
            assert float(expected.norm()) > 1e-3
