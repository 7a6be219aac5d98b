"""Checks that hold for every backend that keeps the contract of `rollcast.models.Backend`.

    SUBJECT = BackendUnderTest(name="mine", make=MyBackend, …)

    @pytest.mark.parametrize("check", CHECKS, ids=str)
    async def test_my_backend_keeps_the_contract(check):
        await check(SUBJECT)

Nothing here imports pytest. A check that does not apply to a backend raises `NotApplicable`, which pytest shows as a skip.
"""

from rollcast.testing.conformance.bench import Bench, Generated
from rollcast.testing.conformance.chat_checks import CHAT_CHECKS
from rollcast.testing.conformance.check import Check, check
from rollcast.testing.conformance.input_checks import INPUT_CHECKS
from rollcast.testing.conformance.lifetime_checks import LIFETIME_CHECKS
from rollcast.testing.conformance.report import Outcome, run_checks
from rollcast.testing.conformance.sampling_checks import SAMPLING_CHECKS
from rollcast.testing.conformance.subject import BackendUnderTest, NotApplicable, Reference
from rollcast.testing.conformance.text_checks import TEXT_CHECKS

__all__ = [
    "CHECKS",
    "BackendUnderTest",
    "Bench",
    "Check",
    "Generated",
    "NotApplicable",
    "Outcome",
    "Reference",
    "check",
    "run_checks",
]

# Checks that break their backend come last, so that a shared one is made once.
CHECKS: tuple[Check, ...] = tuple(
    sorted(
        (*TEXT_CHECKS, *SAMPLING_CHECKS, *INPUT_CHECKS, *CHAT_CHECKS, *LIFETIME_CHECKS),
        key=lambda each: each.fresh,
    )
)
"""All checks; await one with a `BackendUnderTest`, or with a `Bench` that shares one backend among them."""
