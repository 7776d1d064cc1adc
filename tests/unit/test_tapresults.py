from virtiopy.cli.tapresults import parse_tap


def test_a_whole_report_without_failures_passes() -> None:
    report = parse_tap("TAP version 13\nok 1 - a: works\nok 2 - b: works\n1..2\n")
    assert report.passed
    assert [(t.number, t.description, t.outcome) for t in report.tests] == [
        (1, "a: works", "passed"),
        (2, "b: works", "passed"),
    ]


def test_a_failed_test_fails_the_report() -> None:
    assert not parse_tap("ok 1 - a\nnot ok 2 - b\n1..2\n").passed


def test_a_skipped_test_is_counted_apart_with_its_reason() -> None:
    report = parse_tap("ok 1 - blk0: discards # SKIP not offered\n1..1\n")
    assert report.passed
    assert report.tests[0].outcome == "skipped"
    assert report.tests[0].skip == "not offered"


def test_tests_are_grouped_by_what_stands_before_the_colon() -> None:
    text = "ok 1 - a: x\nnot ok 2 - a: y\nok 3 - b: x # SKIP why\nok 4 - plain\n1..4\n"
    groups = parse_tap(text).by_group()
    assert list(groups) == ["a", "b", ""]
    assert dict(groups["a"]) == {"passed": 1, "failed": 1}
    assert dict(groups["b"]) == {"skipped": 1}


def test_fewer_tests_than_planned_are_a_complaint() -> None:
    report = parse_tap("1..3\nok 1 - a\nok 2 - b\n")
    assert not report.passed
    assert report.complaint == "it has 2 of 3 planned tests"


def test_tests_without_a_plan_are_a_complaint() -> None:
    report = parse_tap("ok 1 - a\n")
    assert not report.passed
    assert report.complaint is not None


def test_bailing_out_fails_with_its_reason() -> None:
    report = parse_tap("ok 1 - a\nBail out! no memory\n")
    assert not report.passed
    assert report.bail_out == "no memory"


def test_text_that_is_no_tap_is_an_empty_report() -> None:
    report = parse_tap("Hello, World!\n")
    assert report.tests == []
    assert report.passed


def test_diagnostics_with_yaml_do_not_count_as_tests() -> None:
    report = parse_tap("TAP version 13\nok 1 - a\n  ---\n  severity: none\n  ...\n1..1\n")
    assert len(report.tests) == 1
    assert report.passed
