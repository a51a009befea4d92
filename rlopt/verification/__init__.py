"""Checks of gradient estimators and agents against exact answers: the installed library's, or a user's own."""

from rlopt.verification.checks import Check, Report
from rlopt.verification.run import verify

__all__ = ["Check", "Report", "verify"]
