"""The plots of a comparison, drawn by matplotlib, with their text as text where it is SVG."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from virtiopy.exits.differences import handled_in_kernel
from virtiopy.exits.model import REGISTERS, Comparison, Costs, Row, format_number

# Okabe and Ito's colours, which the colour-blind tell apart.
_ORANGE, _SKY, _GREEN, _YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
_BLUE, _VERMILION, _PURPLE, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"

_OTHER = "other registers"
_USERSPACE = "to userspace"
_NO_COUNTER = "no counter tells"

_EVENTS = ("kicks", "kicks suppressed", "interrupts")
_REGISTERS = (*REGISTERS, _OTHER)

#: In the order in which they are drawn.
_COLORS = {
    "QueueNotify": _VERMILION,
    "InterruptStatus": _ORANGE,
    "InterruptACK": _YELLOW,
    _OTHER: _GREY,
    _USERSPACE: _VERMILION,
    "halt_exits": _BLUE,
    "insn_emulation": _SKY,
    "irq_window_exits": _PURPLE,
    "irq_exits": _GREEN,
    "preemption_other": _YELLOW,
    _NO_COUNTER: _GREY,
    "vCPU thread": _BLUE,
    "loop thread": _ORANGE,
    "native thread": _SKY,
    "vhost worker": _GREEN,
    "backend process": _PURPLE,
    "elapsed": "black",
}
_ORDER = [*_COLORS, *_EVENTS]

_STYLE = Path(__file__).with_name("page.mplstyle")

_MICROSECONDS = 1e6

#: Inches, and dots for each in a PNG.
_WIDTH = 10.0
_DPI = 150
_BAR = 0.42

Shares = dict[str, float]


@dataclass(slots=True, frozen=True)
class Plot:
    """A drawing; `name` is what a file of it is called."""

    name: str
    title: str
    _figure: Figure

    @property
    def svg(self) -> str:
        """An `<svg>` element, which needs nothing from elsewhere."""
        # What comes before is for files of their own: it names a document type elsewhere.
        document = self._draw("svg", dict.fromkeys(("Creator", "Date", "Format", "Type"))).decode()
        element = document[document.index("<svg") :]
        label = escape(self.title, quote=True)
        return element.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)

    def svg_file(self) -> bytes:
        """Return an SVG file, which says that virtiopy made it."""
        return self._draw("svg", {"Creator": "virtiopy", "Title": self.title, "Date": None})

    def png_file(self) -> bytes:
        """Return a PNG file, which says that virtiopy made it."""
        return self._draw("png", {"Software": "virtiopy", "Title": self.title})

    def _draw(self, form: str, metadata: Mapping[str, str | None]) -> bytes:
        buffer = io.BytesIO()
        # The salt keeps the identifiers of one drawing apart from those of the next.
        with mpl.rc_context({"svg.hashsalt": self.title}, fname=_STYLE):
            self._figure.savefig(buffer, format=form, metadata=metadata, dpi=_DPI)
        return buffer.getvalue()


def _color(part: str) -> str:
    return _COLORS.get(part, _GREY)


def _in_order(parts: Iterable[str]) -> list[str]:
    """Return each part once; those that have no place come last."""
    places = {part: place for place, part in enumerate(_ORDER)}
    return sorted(dict.fromkeys(parts), key=lambda part: places.get(part, len(places)))


# What is drawn, for one request


def userspace_shares(costs: Costs) -> Shares:
    """Divide the exits to userspace by register."""
    shares = {register: costs.each(costs.of(register)) for register in REGISTERS}
    shares[_OTHER] = costs.each(costs.userspace) - sum(shares.values())
    return shares


def kernel_shares(costs: Costs) -> Shares:
    """Divide the exits that the kernel counted by what became of them."""
    shares = {_USERSPACE: costs.each(costs.userspace)}
    for counter, count in handled_in_kernel(costs).items():
        shares[counter or _NO_COUNTER] = costs.each(count)
    return shares


def cpu_shares(costs: Costs) -> Shares:
    """Divide the CPU time by thread, µs."""
    spent = {kind: costs.each(s) * _MICROSECONDS for kind, s in costs.cpu_seconds.items()}
    return {
        "vCPU thread": spent["vcpu"],
        "loop thread": spent["loop"] + spent["workers"],
        "native thread": spent["native"],
        "vhost worker": spent["vhost"],
        "backend process": spent["backend"],
    }


# The comparisons


def compare_userspace(comparison: Comparison) -> Plot:
    """Draw the exits to userspace of every mode, by register."""
    unit = comparison.workload.unit
    return _stacked(
        "userspace",
        f"Exits to userspace, a {unit}",
        [(row.name, userspace_shares(costs)) for row, costs in comparison.measured],
        f"exits a {unit}",
    )


def compare_kernel(comparison: Comparison) -> Plot:
    """Draw all exits of every mode, as the kernel counted them."""
    unit = comparison.workload.unit
    return _stacked(
        "kernel",
        f"Exits that the kernel counted, a {unit}, and what became of them",
        [(row.name, kernel_shares(costs)) for row, costs in comparison.measured],
        f"exits a {unit}",
    )


def compare_time(comparison: Comparison) -> Plot:
    """Draw time and CPU time of every mode."""
    unit = comparison.workload.unit
    return _stacked(
        "time",
        f"CPU time by thread, and elapsed time, a {unit}",
        [(row.name, cpu_shares(costs)) for row, costs in comparison.measured],
        "µs",
        elapsed=[costs.each(costs.seconds) * _MICROSECONDS for _, costs in comparison.measured],
    )


def _stacked(
    name: str,
    title: str,
    bars: Sequence[tuple[str, Shares]],
    unit: str,
    elapsed: Sequence[float] = (),
) -> Plot:
    """Draw a bar a mode, in parts; a mark beside them for the `elapsed` time of each."""
    with mpl.rc_context(fname=_STYLE):
        figure = Figure(figsize=(_WIDTH, 1.6 + _BAR * len(bars)), layout="constrained")
        axes = figure.subplots()
        ends = [0.0] * len(bars)
        for part in _in_order(part for _, shares in bars for part in shares):
            widths = [shares.get(part, 0.0) for _, shares in bars]
            if any(widths):
                axes.barh(range(len(bars)), widths, left=ends, color=_color(part), label=part)
                ends = [a + b for a, b in zip(ends, widths, strict=True)]
        labels = [format_number(end) for end in ends]
        if elapsed:
            axes.plot(elapsed, range(len(bars)), "D", color="black", label="elapsed")
            labels = [
                f"{label} CPU, {format_number(time)} elapsed"
                for label, time in zip(labels, elapsed, strict=True)
            ]
            ends = list(map(max, ends, elapsed))
        names = [name for name, _ in bars]
        _finish(axes, unit, max(ends), dict(zip(names, ends, strict=True)), labels)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=4, frameon=False)
        return Plot(f"compare-{name}", title, figure)


def _finish(
    axes: Axes, unit: str, most: float, ends: Mapping[str, float], labels: Sequence[str]
) -> None:
    """Name the bars, write a label behind each one's end, and leave room for the longest."""
    for place, (end, label) in enumerate(zip(ends.values(), labels, strict=True)):
        axes.annotate(label, (end, place), xytext=(9, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, max(most, 1e-9) * (1.1 + 0.015 * max(map(len, labels))))
    axes.set_yticks(range(len(ends)), list(ends))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(axis="x", color="#DDDDDD")
    axes.tick_params(axis="y", length=0)


# One mode


def profile(comparison: Comparison, row: Row, costs: Costs) -> Plot:
    """Draw what one request cost in one mode, on the same scales for every mode."""
    unit = comparison.workload.unit
    everyone = [each for _, each in comparison.measured]
    names = _in_order(name for each in everyone for name in _counts(each))
    counts = {name: _counts(costs).get(name, 0.0) for name in names}
    title = f"A {unit} in {row.name} mode"
    with mpl.rc_context(fname=_STYLE):
        figure = Figure(figsize=(_WIDTH, 1.2 + 0.32 * len(counts)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        most = max(max(_counts(each).values()) for each in everyone)
        _bars(left, counts, [_kind(name) for name in names], f"times a {unit}", most)
        times = _times(costs)
        most = max(max(_times(each).values()) for each in everyone)
        _bars(right, times, [_color(name) for name in times], f"µs a {unit}", most)
        return Plot(f"mode-{row.slug}", title, figure)


def _counts(costs: Costs) -> Shares:
    """List what is counted: exits to userspace, in the kernel, and what need not be an exit."""
    kernel = kernel_shares(costs)
    del kernel[_USERSPACE]
    events = zip(_EVENTS, (costs.kicks, costs.suppressed, costs.interrupts), strict=True)
    counted = {name: costs.each(n) for name, n in events if n is not None}
    return userspace_shares(costs) | kernel | counted


def _kind(name: str) -> str:
    """Return the colour of what is counted: by where it went."""
    if name in _EVENTS:
        return _GREY
    return _VERMILION if name in _REGISTERS else _BLUE


def _times(costs: Costs) -> Shares:
    return {**cpu_shares(costs), "elapsed": costs.each(costs.seconds) * _MICROSECONDS}


def _bars(axes: Axes, bars: Shares, colors: Sequence[str], unit: str, most: float) -> None:
    axes.barh(range(len(bars)), list(bars.values()), color=colors)
    _finish(axes, unit, most, bars, [format_number(value) for value in bars.values()])


def comparisons(comparison: Comparison) -> list[Plot]:
    """Draw what compares the modes."""
    plots = [compare_userspace(comparison), compare_time(comparison)]
    if any(costs.kernel for _, costs in comparison.measured):
        plots.insert(1, compare_kernel(comparison))
    return plots


def every_plot(comparison: Comparison) -> list[Plot]:
    """Draw the comparisons, and each mode that was measured."""
    profiles = [profile(comparison, row, costs) for row, costs in comparison.measured]
    return [*comparisons(comparison), *profiles]
