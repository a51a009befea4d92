"""Agents that differ by their seed alone, trained as one batched computation: one step of all environments, one network pass
and one step of descent for all of them.
"""

from rlopt.together.learning import learn_together, why_not_together

__all__ = ["learn_together", "why_not_together"]
