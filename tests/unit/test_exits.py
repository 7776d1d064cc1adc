import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from virtiopy.cli.exits_table import show
from virtiopy.exits.differences import differences, handled_in_kernel, interprets
from virtiopy.exits.document import document
from virtiopy.exits.model import Comparison, Costs, Host, Row, Workload
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.metrics.measurement import Measurement

PACKETS = 100
THREADS = {
    "vcpu": 0.01,
    "loop": 0.002,
    "workers": 0.0,
    "native": 0.0,
    "vhost": 0.0,
    "backend": 0.0,
}
WHY = "/dev/vhost-net is missing: load the vhost_net module."


def exits(**registers: int) -> Counter[ExitKind]:
    directions = {"InterruptStatus": "read"}
    return Counter(
        {
            ExitKind("MMIO", "net0", register, directions.get(register, "write")): count
            for register, count in registers.items()
        }
    )


def costs(userspace: Counter[ExitKind], kernel: Mapping[str, int]) -> Costs:
    return Costs(PACKETS, PACKETS, 3, 90, Measurement(userspace, kernel, 0.02, THREADS))


TRAPPED = costs(
    exits(QueueNotify=100, InterruptStatus=90, InterruptACK=90),
    {"exits": 281, "mmio_exits": 280, "irq_injections": 90, "irq_exits": 1, "insn_emulation": 280},
)
# As on SVM: kicks and EOIs are emulated in the kernel.
IOEVENTFD = costs(
    exits(InterruptStatus=90, InterruptACK=90),
    {
        "exits": 460,
        "mmio_exits": 180,
        "irq_injections": 92,
        "halt_exits": 80,
        "irq_exits": 6,
        "insn_emulation": 370,
    },
)
# As where ring 0 is interpreted.
INTERPRETED = costs(exits(), {"exits": 130, "halt_exits": 90, "insn_emulation": 60000})


def comparison(*rows: Row, command: str = "virtiopy exits --net tap=t0") -> Comparison:
    return Comparison(
        command=command,
        date=datetime(2026, 11, 23, 21, 0, tzinfo=UTC),
        host=Host("6.1.0", "A CPU", 2),
        accelerator="kvm",
        workload=Workload("net", "packet", "sent", PACKETS, 1),
        rows=rows,
    )


COMPARISON = comparison(
    Row("trapped", exit_free=False, costs=TRAPPED),
    Row("ioeventfd", exit_free=False, costs=IOEVENTFD),
    Row("vhost", exit_free=False, missing=WHY),
)


# Differences


@st.composite
def any_costs(draw: st.DrawFn) -> Costs:
    count = st.integers(0, 1000)
    registers = ("QueueNotify", "InterruptStatus", "InterruptACK", "Status")
    userspace = exits(**{name: draw(count) for name in registers})
    names = (
        *("exits", "mmio_exits", "irq_injections", "halt_exits", "irq_exits", "signal_exits"),
        *("irq_window_exits", "nmi_window_exits", "insn_emulation", "preemption_other"),
    )
    kernel = {name: draw(count) for name in draw(st.sets(st.sampled_from(names)))}
    measured = Measurement(userspace, kernel, 1.0, THREADS)
    return Costs(draw(st.integers(1, 1000)), draw(count), draw(count), draw(count), measured)


@given(any_costs())
def test_the_parts_of_a_difference_add_up_to_it(each: Costs) -> None:
    for difference in differences(each):
        assert difference.ours + sum(part.count for part in difference.parts) == difference.theirs
        assert all(part.count for part in difference.parts)


def parts(each: Costs, what: str) -> dict[str, int]:
    [difference] = [found for found in differences(each) if found.what == what]
    return {f"{part.counter}: {part.why.split()[0]}": part.count for part in difference.parts}


def test_exits_that_the_kernel_handled_are_named_by_its_counters() -> None:
    assert parts(IOEVENTFD, "exits") == {
        "halt_exits: HLT:": 80,
        "irq_exits: interrupts": 6,
        "insn_emulation: kicks": 100,
        "insn_emulation: end-of-interrupt": 90,
        ": no": 4,
    }
    assert handled_in_kernel(IOEVENTFD) == {
        "halt_exits": 80,
        "irq_exits": 6,
        "insn_emulation": 190,
        "": 4,
    }


def test_kicks_that_an_ioeventfd_took_make_up_the_difference_to_queue_notify() -> None:
    assert parts(IOEVENTFD, "kicks") == {"ioeventfd: writes": 100}
    assert parts(TRAPPED, "kicks") == {}


def test_an_interpreted_instruction_is_not_taken_for_an_exit() -> None:
    assert interprets(INTERPRETED)
    assert not interprets(IOEVENTFD)
    assert parts(INTERPRETED, "exits") == {"halt_exits: HLT:": 90, ": no": 40}


def test_interrupts_that_were_injected_twice_are_explained() -> None:
    assert list(parts(IOEVENTFD, "interrupts").values()) == [2]
    assert parts(TRAPPED, "interrupts") == {}


def test_without_counters_of_the_kernel_only_the_kicks_are_compared() -> None:
    assert [found.what for found in differences(costs(exits(), {}))] == ["kicks"]


# JSON


def test_the_document_has_the_names_that_its_page_lists() -> None:
    written = json.loads(json.dumps(document(COMPARISON)))

    assert list(written) == [
        *("schema", "virtiopy", "command", "date", "host", "accelerator", "workload"),
        *("set_up_excluded", "modes"),
    ]
    trapped, ioeventfd, vhost = written["modes"]
    assert vhost == {"mode": "vhost", "exit_free": False, "missing": WHY, "measured": None}
    assert trapped["missing"] is None
    assert list(trapped["measured"]) == [
        *("requests", "per_request", "userspace_exits", "registers", "kernel"),
        *("interrupts_taken", "kicks", "kicks_suppressed", "seconds", "cpu_seconds"),
        "differences",
    ]
    assert trapped["measured"]["per_request"] == {
        "userspace_exits": 2.8,
        "queue_notify_exits": 1.0,
        "kernel_exits": 2.81,
        "interrupts_injected": 0.9,
        "kicks": 1.0,
        "kicks_suppressed": 0.03,
        "seconds": pytest.approx(0.0002),
        "cpu_seconds": {kind: pytest.approx(s / PACKETS) for kind, s in THREADS.items()},
    }
    assert trapped["measured"]["registers"][0] == {
        "reason": "MMIO",
        "device": "net0",
        "register": "QueueNotify",
        "direction": "write",
        "count": 100,
        "per_request": 1.0,
    }
    assert ioeventfd["measured"]["per_request"]["queue_notify_exits"] == 0


def test_what_nobody_counted_is_null() -> None:
    row = Row("ioeventfd", exit_free=False, costs=costs(exits(), {}))
    [mode] = document(comparison(row))["modes"]

    assert mode["measured"] is not None
    assert mode["measured"]["kernel"] is None
    assert mode["measured"]["per_request"]["kernel_exits"] is None


# The terminal


def shown(what: Comparison, width: int = 80) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width), what)
    return stream.getvalue()


def test_the_tables_fit_eighty_columns_and_cut_nothing_off() -> None:
    text = shown(COMPARISON)

    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize("width", [20, 40, 60])
def test_on_a_narrow_terminal_no_number_is_cut(width: int) -> None:
    wide, narrow = (re.findall(r"\d+\.\d\d|\d{3,}", shown(COMPARISON, w)) for w in (200, width))

    assert narrow == wide
    assert "…" not in shown(COMPARISON, width)


def test_a_missing_mode_is_a_row_and_says_why() -> None:
    text = shown(COMPARISON)

    assert re.search(r"│ vhost +│ +missing │ +- │", text)
    assert WHY in " ".join(text.split())


def test_the_tables_say_that_set_up_is_excluded() -> None:
    assert "Set-up is excluded" in shown(COMPARISON)


# The page


class Page(HTMLParser):
    """What a page has: figures by their identifier, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: dict[str, int] = {}
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self._figure = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
                self.references.append(value or "")
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
        if tag == "figure":
            self._figure = dict(attrs)["id"] or ""
            self.figures[self._figure] = 0
        if tag == "svg":
            self.figures[self._figure] += 1


@pytest.fixture(scope="module")
def page_text() -> str:
    page = pytest.importorskip("virtiopy.exits.page", reason="the extra `plots` is not installed")
    text: str = page.render(COMPARISON)
    return text


def test_the_page_has_a_plot_a_mode_and_says_which_is_missing(page_text: str) -> None:
    figures = Page(page_text).figures

    assert {name: n for name, n in figures.items() if name.startswith("mode-")} == {
        "mode-trapped": 1,
        "mode-ioeventfd": 1,
        "mode-vhost": 0,
    }
    assert [n for name, n in figures.items() if name.startswith("compare-")] == [1, 1, 1]
    assert page_text.count(WHY) >= 3


def test_the_page_refers_to_nothing_but_itself(page_text: str) -> None:
    page = Page(page_text)

    assert [r for r in page.references if not r.startswith(("#", "data:"))] == []
    assert not page.tags.keys() & {"script", "iframe", "object", "embed", "base"}
    assert "@import" not in page_text


def test_identifiers_of_one_drawing_are_not_those_of_another(page_text: str) -> None:
    page = Page(page_text)
    referred = {r.removeprefix("#") for r in page.references if r.startswith("#")}

    assert [name for name, n in Counter(page.ids).items() if n > 1 and name in referred] == []


def test_the_page_names_every_counter_of_a_difference(page_text: str) -> None:
    for counter in handled_in_kernel(IOEVENTFD):
        assert not counter or f"<code>{counter}</code>" in page_text


def test_the_page_says_where_and_how_it_was_measured(page_text: str) -> None:
    for words in ("virtiopy exits --net tap=t0", "2026-11-23 21:00 UTC", "6.1.0", "A CPU", "kvm"):
        assert words in page_text
    assert "Set-up is excluded" in page_text


def test_what_a_user_wrote_is_text_on_the_page() -> None:
    page = pytest.importorskip("virtiopy.exits.page", reason="the extra `plots` is not installed")
    row = Row("trapped", exit_free=False, costs=TRAPPED)
    text = page.render(comparison(row, command="virtiopy exits --disk '<script>x</script>'"))

    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_page_without_any_exit_can_be_drawn() -> None:
    page = pytest.importorskip("virtiopy.exits.page", reason="the extra `plots` is not installed")
    row = Row("vhost", exit_free=True, costs=costs(exits(), {}))

    assert Page(page.render(comparison(row))).figures["mode-vhost-exit-free"] == 1
