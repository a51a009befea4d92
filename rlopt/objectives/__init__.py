"""Utilities f(J) of the vector of returns J [K]: what agents of several objectives maximise.

Utilities are frozen values: they print, compare and are saved. As text, for the command line, one is its name, its first
argument and then the others by name, in any order; `none` stands for "no bound", and what has a default may be left out:

    weighted-sum:0.5,0.5                                          Σ_k w_k J_k; "0.5,0.5" is the same
    chebyshev:0.5,0.5;ideal=23.7,-1;augmentation=0.01             −max_k x_k − ρ Σ_k x_k,  x_k = w_k (z*_k − J_k)
    smooth-chebyshev:0.5,0.5;ideal=23.7,-1;temperature=0.1        −μ log Σ_k exp(x_k / μ)
    fairness:1                                                    Σ_k log(J_k + σ)
    reciprocals:500;offset=1                                      Σ_k −scale / (J_k + offset)
    square-roots:1,101                                            Σ_k √(J_k + offset_k)
    lagrangian:0;thresholds=none,0.5;step-size=0.01               J_0, subject to J_1 ≥ 0.5
    identity                                                      J, for one objective
    queue:500,0.9999                                              `queue_utility(500, 0.9999)`
    deep-sea-treasure                                             `deep_sea_treasure_utility()`

All but the last two take a box too: `fairness:1;low=0`, `square-roots:1,101;low=0,-100;high=none,0`. Shells need quotes
around the semicolons.
"""

from rlopt.objectives.chebyshev import Chebyshev, SmoothChebyshev
from rlopt.objectives.concave import ProportionalFairness, Reciprocals, SquareRoots, deep_sea_treasure_utility, queue_utility
from rlopt.objectives.criteria import expected_scalarised_return, scalarised_expected_return
from rlopt.objectives.lagrangian import Lagrangian
from rlopt.objectives.linear import Identity, WeightedSum
from rlopt.objectives.num_objectives import agreed_num_objectives
from rlopt.objectives.preferences import check_preferences
from rlopt.objectives.reading import (
    KINDS,
    as_vector_utility,
    vector_utility_from_data,
    vector_utility_to_data,
)
from rlopt.objectives.user import UserUtility
from rlopt.objectives.vector_utility import VectorUtility

__all__ = [
    "KINDS",
    "Chebyshev",
    "Identity",
    "Lagrangian",
    "ProportionalFairness",
    "Reciprocals",
    "SmoothChebyshev",
    "SquareRoots",
    "UserUtility",
    "VectorUtility",
    "WeightedSum",
    "agreed_num_objectives",
    "as_vector_utility",
    "check_preferences",
    "deep_sea_treasure_utility",
    "expected_scalarised_return",
    "queue_utility",
    "scalarised_expected_return",
    "vector_utility_from_data",
    "vector_utility_to_data",
]
