"""Linux's drivers with every unusual and every hostile device: the table of docs/linux-drivers.md.

    python -m bench.linux_drivers --folder results            # half an hour, on the software CPU
    python -m bench.linux_drivers --folder results --page docs/linux-drivers.md

Each run is one `virtiopy linux --check-driver`, with `--device-variant` or `--hostile`; what was
run in the folder is not run again. The page's table is replaced, and its prose stays. The network
device takes a tap: root, or a network namespace of one's own (unshare --net --user
--map-root-user).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtiopy.check.cases import (
    AS_IT_IS,
    Case,
    CaseKind,
    Files,
    Outcome,
    cases,
    document,
    read_result,
    withheld,
)

#: Where the page's table begins and ends.
BEGIN = "<!-- made by python -m bench.linux_drivers -->"
END = "<!-- the end of what is made -->"

#: How long a run may take before it hangs, seconds: a boot takes 5 to 20.
TIMEOUT = 150

#: How many devices are named with a finding; the others are counted.
NAMED_MOST = 4

#: A finding, as a report has it.
FINDING = re.compile(r"\S+: (?P<what>.*) \((?P<id>[\d.]+:\d+) (?P<keyword>[A-Z ]+): .*\)$")

#: Linux tells of its troubles from this level on.
WORDS = "loglevel=5"

#: Where in Linux 6.1 a finding comes from, read in its source, and who is right: by the statement.
CHECKED = {
    "2.7.5.3.1:3": "drivers/virtio/virtio_ring.c, `virtqueue_add_split()`: a chain is held against "
    "the queue's size only where there are no indirect descriptors. The finding is right",
    "3.1.1:7": "drivers/virtio/virtio_balloon.c, `init_vqs()`: it kicks the stats queue, and "
    "`virtballoon_probe()` sets DRIVER_OK afterwards. The finding is right",
    "4.2.2.2:20": "drivers/virtio/virtio_mmio.c, `vm_interrupt()`: what was read from "
    "InterruptStatus is written to InterruptACK as it is. The finding is right",
}


@dataclass(slots=True, frozen=True)
class Subject:
    """A driver: how its device is attached, and what it does, in the guest's shell."""

    name: str
    attach: Sequence[str]
    task: str


SUBJECTS = (
    Subject(
        "blk",
        ("--disk", "{folder}/disk.img"),
        "mkfs.ext2 -q /dev/vda && mount -t ext4 /dev/vda /mnt && head -c 1000000 /dev/urandom >/a "
        "&& cp /a /mnt/a && sync && echo 3 >/proc/sys/vm/drop_caches && cmp /a /mnt/a && "
        "umount /mnt",
    ),
    Subject(
        "net",
        ("--net", "tap=drv0,create=on,address=192.0.2.1/24"),
        "ping -c 5 -i 0.2 -s 1400 192.0.2.1",
    ),
    Subject(
        "console", ("--console", "file:{folder}/console.txt"), "echo hello >/dev/hvc0 && sleep 1"
    ),
    Subject("rng", ("--rng",), "test $(head -c 1000 /dev/hwrng | wc -c) = 1000"),
    Subject(
        "balloon",
        ("--balloon", "target=64M"),
        "sleep 2; test $(awk '/MemTotal/{print $2}' /proc/meminfo) -lt 460000",
    ),
)


def load(subject: Subject, folder: Path) -> dict[str, Any]:
    """Return the runs of a driver that are in the folder, by the device's name."""
    files = sorted((folder / subject.name).glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in files}


def run(subject: Subject, case: Case, folder: Path, timeout: int) -> None:
    """Run a driver with a device, and keep what came of it in the folder."""
    kept = folder / subject.name / f"{case.name}.json"
    with tempfile.TemporaryDirectory(prefix="virtiopy-drivers-") as made:
        files = Files.make(Path(made) / "case")
        (files.folder / "disk.img").touch()
        os.truncate(files.folder / "disk.img", 32 << 20)
        attach = [word.format(folder=files.folder) for word in subject.attach]
        command = [sys.executable, "-m", "virtiopy", "linux", *attach, *case.options]
        command += ["--append", WORDS, "--timeout", str(timeout)]
        command += [f"--check-driver={files.judged}", "--json", str(files.run)]
        with files.output.open("wb") as output:
            ended = subprocess.run(
                [*command, "--", subject.task],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        result = read_result(case, files, ended.returncode)
    if result.outcome is Outcome.NOT_RUN:
        sys.exit(f"{subject.name}, {case.name}: not run (status {result.status}): {result.why}")
    kept.write_text(json.dumps(document([result])[0], indent=1))
    print(f"{subject.name}, {case.name}: {result.outcome}, {result.seconds:.0f} s", flush=True)


def withheld_of(runs: Mapping[str, Any]) -> list[Case]:
    """Return a case for each feature that the device as it is offers; none before it was run."""
    return withheld(runs[AS_IT_IS.name]["offered"]) if AS_IT_IS.name in runs else []


def cell(run_: Mapping[str, Any]) -> str:
    """Word what one run came to."""
    words = [str(run_["outcome"])]
    # No statement holds for the driver of a hostile device.
    if run_["kind"] != "hostile":
        if run_["broken"]:
            words.append(f"{len(run_['broken'])} MUST")
        if run_["should_broken"]:
            words.append(f"{len(run_['should_broken'])} SHOULD")
    text = ", ".join(words)
    return text if run_["right"] else f"**{text}**"


def page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Make the tables and the list of findings, as Markdown; what was not run is a dash."""
    lines = [f"| device | {' | '.join(reports)} |", f"| --- |{' --- |' * len(reports)}"]
    for case in cases():
        cells = [cell(runs[case.name]) if case.name in runs else "-" for runs in reports.values()]
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    without = dict.fromkeys(case.name for runs in reports.values() for case in withheld_of(runs))
    if without:
        lines += ["", f"| device | {' | '.join(reports)} |", f"| --- |{' --- |' * len(reports)}"]
    for name in without:
        cells = [_cell_without(name, runs) for runs in reports.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| statement | driver | what it did | with | checked in |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for (name, statement), (what, found) in findings(reports).items():
        more = f" and {len(found) - NAMED_MOST} more" if len(found) > NAMED_MOST else ""
        lines.append(
            f"| {statement} | {name} | {what} | {', '.join(found[:NAMED_MOST])}{more} "
            f"| {CHECKED.get(statement.partition(' ')[0], 'not checked yet')} |"
        )
    lines += ["", "| device | driver | what went wrong |", "| --- | --- | --- |"]
    for name, runs in reports.items():
        for case in [*cases(), *withheld_of(runs)]:
            run_ = runs.get(case.name)
            if run_ is not None and not run_["right"] and run_["outcome"] != "passes":
                lines.append(f"| {case.name} | {name} | {run_['outcome']}: {why(run_)} |")
    return "\n".join(lines) + "\n"


def _cell_without(name: str, runs: Mapping[str, Any]) -> str:
    if name in runs:
        return cell(runs[name])
    return "-" if name in {case.name for case in withheld_of(runs)} else "not offered"


def findings(
    reports: Mapping[str, Mapping[str, Any]],
) -> dict[tuple[str, str], tuple[str, list[str]]]:
    """Return what each driver did, by its name and the statement, and with which devices."""
    found: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for name, runs in reports.items():
        for case in [*cases(), *withheld_of(runs)]:
            run_ = runs.get(case.name)
            if run_ is None or case.kind is CaseKind.HOSTILE:
                continue
            for text in [*run_["broken"], *run_["should_broken"]]:
                match = FINDING.match(text)
                if match is None:
                    sys.exit(f"this is no finding: {text}")
                key = (name, f"{match['id']} {match['keyword']}")
                found.setdefault(key, (match["what"], []))[1].append(case.name)
    return found


def why(run_: Mapping[str, Any]) -> str:
    """Word why a run is not right, without what the next run says otherwise."""
    return str(run_["why"]).partition("; CPU")[0].replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", choices=[one.name for one in SUBJECTS], action="append")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--case", action="append", help="these devices alone, as `late`")
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="what hangs takes, seconds")
    parser.add_argument("--no-runs", action="store_true", help="tell of what is in the folder")
    arguments = parser.parse_args()
    chosen = [one for one in SUBJECTS if arguments.device is None or one.name in arguments.device]
    for subject in chosen:
        (arguments.folder / subject.name).mkdir(parents=True, exist_ok=True)
    reports = {one.name: load(one, arguments.folder) for one in chosen}
    for subject in () if arguments.no_runs else chosen:
        for choose in (lambda _: cases(), withheld_of):
            for case in choose(reports[subject.name]):
                wanted = arguments.case is None or case.name in arguments.case
                if wanted and case.name not in reports[subject.name]:
                    run(subject, case, arguments.folder, arguments.timeout)
            reports[subject.name] = load(subject, arguments.folder)
    made = page(reports)
    if arguments.page is None:
        print(made, end="")
        return
    text = arguments.page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    arguments.page.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}")


if __name__ == "__main__":
    main()
