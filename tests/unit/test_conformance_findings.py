"""From failed tests to findings: which statement is broken, and what cannot be judged."""

from collections.abc import Sequence

from virtiopy.conformance.clauses.definitions import COMPLETION, IDLE_KICK, WRITTEN
from virtiopy.conformance.report.findings import Findings
from virtiopy.conformance.report.results import Blame, Failure, Outcome, Result

#: A statement that a device MUST keep to, one that it SHOULD, and a definition.
MUST, SHOULD, DEFINITION = "2.7.4.1:1", "2.7.7.2:2", "5.2.6:1"


def failed(
    test: str,
    clauses: Sequence[str],
    blame: Blame = Blame.TEST,
    clause: str | None = None,
    *,
    died: str = "",
) -> Result:
    failure = Failure(f"what {test} found", blame, clause, died)
    return Result(test, "disk", clauses, Outcome.FAILED, failure.words, "", 0, (), (), failure)


def found(*results: Result) -> list[tuple[str, str]]:
    return [(one.statement, one.outcome.value) for one in Findings(results).all()]


def test_a_failed_assertion_is_about_the_statement_of_its_test() -> None:
    assert found(failed("a", [MUST])) == [(MUST, "failed")]


def test_two_tests_of_one_statement_are_one_finding() -> None:
    assert found(failed("a", [MUST]), failed("b", [MUST])) == [(MUST, "failed")]


def test_a_failure_that_is_sure_is_about_its_own_statement() -> None:
    assert found(failed("a", [MUST], Blame.SURE, WRITTEN)) == [(WRITTEN, "failed")]


def test_what_a_device_should_do_is_a_warning() -> None:
    assert found(failed("a", [SHOULD])) == [(SHOULD, "warning")]
    [finding] = Findings([failed("a", [SHOULD])], strict=True).all()
    assert finding.outcome is Outcome.FAILED


def test_a_step_that_works_in_its_own_tests_is_what_the_failed_test_is_about() -> None:
    assert found(failed("a", [MUST], Blame.STEP, COMPLETION)) == [(MUST, "failed")]


def test_a_step_that_fails_in_its_own_tests_is_what_the_others_show_too() -> None:
    results = [
        failed("its own", [COMPLETION], Blame.STEP, COMPLETION),
        failed("another", [MUST], Blame.STEP, COMPLETION),
    ]
    assert found(*results) == [(COMPLETION, "failed")]
    assert Findings(results).counted_under(results[1]) == COMPLETION


def test_what_stands_on_a_broken_statement_is_blocked() -> None:
    results = [failed("its own", [COMPLETION]), failed("another", [MUST])]
    assert found(*results) == [(COMPLETION, "failed")]
    assert Findings(results).outcome(results[1]) is Outcome.BLOCKED


def test_a_device_that_an_idle_kick_breaks_is_one_finding_wherever_one_was_sent() -> None:
    results = [
        failed("flags", ["2.7.10.2:1"], Blame.STEP, COMPLETION),
        failed("idle kicks", [IDLE_KICK], Blame.STEP, COMPLETION),
    ]
    assert found(*results) == [(IDLE_KICK, "failed")]
    assert Findings(results).outcome(results[0]) is Outcome.BLOCKED


def test_where_requests_are_not_carried_out_at_all_the_idle_kick_is_not_to_blame() -> None:
    results = [
        failed("requests", [COMPLETION], Blame.STEP, COMPLETION),
        failed("idle kicks", [IDLE_KICK], Blame.STEP, COMPLETION),
        failed("flags", ["2.7.10.2:1"], Blame.STEP, COMPLETION),
    ]
    assert found(*results) == [(COMPLETION, "failed")]


def test_what_an_idle_kick_cannot_have_done_is_a_finding_of_its_own() -> None:
    results = [
        failed("idle kicks", [IDLE_KICK], Blame.STEP, COMPLETION),
        failed("flags", ["2.7.10.2:1"]),
    ]
    assert found(*results) == [("2.7.10.2:1", "failed"), (IDLE_KICK, "failed")]


def test_deaths_by_the_same_line_are_one_finding() -> None:
    line = "the device raised ValueError (disk.py:7)"
    results = [
        failed("a", [MUST], Blame.STEP, COMPLETION, died=line),
        failed("b", [DEFINITION], Blame.STEP, COMPLETION, died=line),
    ]
    assert len(found(*results)) == 1
    assert Findings(results).outcome(results[1]) is Outcome.FAILED
