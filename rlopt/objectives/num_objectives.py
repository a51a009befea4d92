"""K, the number of objectives, which arguments, utilities and environments have to agree on."""

from __future__ import annotations


def agreed_num_objectives(given: int | None, of_utility: int | None, paid: int | None) -> int | None:
    """K, from whoever says it; None where nobody does.

    Args:
        given: the argument `num_objectives`.
        of_utility: `VectorUtility.num_objectives`.
        paid: rewards of a step of the environment.

    Raises:
        ValueError: two of them differ.
    """
    if None not in (given, of_utility) and given != of_utility:
        raise ValueError(f"num_objectives: expected {of_utility}, as the utility is one of so many, got {given}")
    wanted, whose = (given, "num_objectives is") if of_utility is None else (of_utility, "the utility is one of")
    if None not in (wanted, paid) and wanted != paid:
        raise ValueError(f"env: it pays {paid} reward{'' if paid == 1 else 's'} a step, and {whose} {wanted}")
    return paid if wanted is None else wanted
