"""`rlopt.verify` and `python -m rlopt verify`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from tqdm import tqdm

from rlopt.agents import ALGORITHMS
from rlopt.arguments import check_choice
from rlopt.cli.errors import bad_input_exits
from rlopt.verification.agents import PAPER, agent_check
from rlopt.verification.checks import WIDTH, Check, Report
from rlopt.verification.estimators import ESTIMATORS
from rlopt.verification.exact import FIXTURES, KINDS, Estimator, Kind, exact_checks
from rlopt.verification.memory import memory_checks
from rlopt.verification.rebel import rebel_checks

PROGRAM = "rlopt verify"
# What the agents that are neither in `PAPER` nor in `OWN` stand on.
OF_OTHERS = {"ppo": "gae", "recurrentppo": "gae"}
STATEFUL = "s2pg"  # which is checked beside the estimators of stateful policies
OWN: dict[str, Callable[[], list[Check]]] = {STATEFUL: memory_checks, "rebel": rebel_checks}


def verify(estimator: Estimator | None = None, kind: Kind = "gradient", *, show: bool = True) -> Report:
    """Check an estimator, or all of the library's, against exact answers on small MDPs.

    The estimator is called with every pair of trajectories of an MDP with a tabular softmax policy, in float64; the
    mean over the pairs, weighted by their probabilities, is its exact expectation.

        def mine(policy, theta, rollout, gamma):
            ...
            return gradient  # [d]

        assert rlopt.verify(mine)

    Args:
        estimator: (policy, θ [d], rollout, γ) -> Tensor, where `policy(θ, observations, actions)` is log π_θ(a | s) and the
            rollout holds two whole episodes, one a column. None checks the library's own.
        kind: what it estimates: "gradient" ∇J(θ) [d] from episodes of θ; "off_policy_gradient" from episodes of others,
            whose log-probabilities are `rollout.log_probs`; "hessian_vector_product" ∇²J(θ) v [d], with v as a fifth
            argument; "return" J(θ), a scalar, and "occupancy" λ(θ) [S, A], both from episodes of others.
        show: print the table.

    Returns:
        A report: its truth value says whether all is right, its `checks` hold the numbers.

    Raises:
        ValueError: an unknown kind; a result of the wrong shape.
    """
    if estimator is None:
        return _shown(Report(list(_library_checks(list(ESTIMATORS), [*PAPER, *OWN]))), show)
    check_choice("kind", kind, KINDS)
    plain = next(item.make for item in ESTIMATORS.values() if item.kind == kind)
    name = getattr(estimator, "__name__", type(estimator).__name__)
    compared = kind not in ("return", "occupancy")
    checks = [
        check
        for fixture in FIXTURES
        for check in exact_checks(name, estimator, kind, plain(fixture.mdp) if compared else None, fixture)
    ]
    return _shown(Report(checks), show)


def estimator_checks(name: str) -> list[Check]:
    """The checks of one of the library's estimators, on every fixture."""
    kind, make, plain = ESTIMATORS[name]
    beside = None if plain is None else ESTIMATORS[plain].make
    return [
        check
        for fixture in FIXTURES
        for check in exact_checks(name, make(fixture.mdp), kind, beside and beside(fixture.mdp), fixture)
    ]


def verify_main(argv: Sequence[str] | None = None) -> None:
    """Check the installed library.

    Raises:
        SystemExit: 1 if a check failed, 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="Check the installed library against exact answers, in a table; exit 1 if a check fails.",
        epilog="A module's own estimator: --estimator mymodule:myfunction --kind gradient",
    )
    parser.add_argument("--algo", metavar="NAME", help=f"only this agent: {', '.join(ALGORITHMS)}")
    parser.add_argument(
        "--estimator", metavar="NAME", help=f"only this estimator, MODULE:FUNCTION or one of: {', '.join(ESTIMATORS)}"
    )
    parser.add_argument("--kind", choices=KINDS, default="gradient", help="what MODULE:FUNCTION estimates")
    arguments = parser.parse_args(argv)
    with bad_input_exits(PROGRAM):
        report = _asked(arguments.algo, arguments.estimator, arguments.kind)
    _shown(report, True)
    raise SystemExit(0 if report else 1)


def _asked(algo: str | None, estimator: str | None, kind: Kind) -> Report:
    """The checks that the command line asks for: all, if it names nothing."""
    if algo is None and estimator is None:
        return Report(list(_library_checks(list(ESTIMATORS), [*PAPER, *OWN])))
    checks: list[Check] = []
    if algo is not None:
        check_choice("algo", algo, tuple(ALGORITHMS))
        checks += list(_library_checks([OF_OTHERS[algo]], []) if algo in OF_OTHERS else _library_checks([], [algo]))
    if estimator is not None and ":" in estimator:
        checks += verify(_imported(estimator), kind, show=False).checks
    elif estimator is not None:
        check_choice("estimator", estimator, tuple(ESTIMATORS))
        checks += list(_library_checks([estimator], []))
    return Report(checks)


def _library_checks(estimators: Sequence[str], algorithms: Sequence[str]) -> Iterable[Check]:
    bar = tqdm([*estimators, *algorithms], desc="verifying", disable=not sys.stderr.isatty(), leave=False)
    for index, name in enumerate(bar):
        bar.set_postfix_str(name)
        if index < len(estimators):
            yield from estimator_checks(name)
        else:
            yield from OWN[name]() if name in OWN else [agent_check(name)]


def _imported(path: str) -> Estimator:
    """The function at "module:name"; the module may lie in the current folder.

    Raises:
        ValueError: there is no such module or function.
    """
    module, _, name = path.partition(":")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"estimator: cannot import {path!r}: {error}") from error
    finally:
        sys.path.remove("")


def _shown(report: Report, show: bool) -> Report:
    if show:
        console = Console()
        (console if console.is_terminal else Console(width=WIDTH)).print(report.table())
    return report
