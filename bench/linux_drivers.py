"""Linux's drivers with every unusual and every hostile device: the table of docs/linux-drivers.md.

    python -m bench.linux_drivers --folder results            # half an hour, on the software CPU
    python -m bench.linux_drivers --folder results --page docs/linux-drivers.md

Each device's runs are one `virtiopy linux --device-variant all --hostile all --check-driver`; what
has been run in the folder is not run again. The page's table is replaced, and its prose stays. The
network device takes a tap: root, or a network namespace of one's own (unshare --net --user
--map-root-user).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtiopy.check.cases import AS_IT_IS, CaseKind, cases

#: Where the page's table begins and ends.
BEGIN = "<!-- made by python -m bench.linux_drivers -->"
END = "<!-- the end of what is made -->"

#: How long a run may take before it hangs, seconds: a boot takes 5 to 20.
TIMEOUT = 150

#: Linux tells of its troubles from this level on.
WORDS = "loglevel=5"


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


def run(subject: Subject, folder: Path) -> Mapping[str, Any]:
    """Run a driver with each device that is not in the folder yet; return the report of all."""
    path = folder / f"{subject.name}.json"
    report: dict[str, Any] = {"runs": [], "findings": []}
    if path.exists():
        report = json.loads(path.read_text())
    done = {run_["case"] for run_ in report["runs"]}
    missing = [case for case in cases() if case.name not in done and case is not AS_IT_IS]
    if missing:
        with (folder / "disk.img").open("ab") as disk:
            disk.truncate(32 << 20)
        made = folder / f"{subject.name}-more.json"
        attach = [word.format(folder=folder) for word in subject.attach]
        command = [sys.executable, "-m", "virtiopy.cli.main", "linux", *attach, "--append", WORDS]
        for option, kind in (
            ("--device-variant", CaseKind.VARIANT),
            ("--hostile", CaseKind.HOSTILE),
        ):
            names = [case.name for case in missing if case.kind is kind]
            # A comma makes several of one.
            command += [option, ",".join([*names, names[-1]])] if names else []
        command += ["--check-driver", "--timeout", str(TIMEOUT), "--json", str(made)]
        ended = subprocess.run([*command, "--", subject.task], check=False)
        if not made.exists():
            sys.exit(f"{subject.name}: nothing was run (status {ended.returncode})")
        join(report, json.loads(made.read_text()))
        made.unlink()
        path.write_text(json.dumps(report, indent=1))
    order = [case.name for case in cases()]
    report["runs"].sort(key=lambda run_: order.index(run_["case"]))
    return report


def join(report: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add runs and findings to a report: a statement's finding once for each device."""
    known = {run_["case"] for run_ in report["runs"]}
    for run_ in more["runs"]:
        if run_["case"] not in known:
            known.add(run_["case"])
            report["runs"].append(run_)
    findings = report["findings"]
    for finding in more["drivers"]["findings"]:
        same = [one for one in findings if one["statement"] == finding["statement"]]
        if same:
            same[0]["count"] += finding["count"]
        else:
            findings.append(finding)


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
    """Make the tables and the list of findings, as Markdown."""
    names = list(reports)
    rows = [[run_["case"] for run_ in reports[names[0]]["runs"]]]
    rows += [[cell(run_) for run_ in reports[name]["runs"]] for name in names]
    lines = [f"| device | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in zip(*rows, strict=True)]
    lines += ["", "| statement | what the driver did | times |", "| --- | --- | --- |"]
    for name in names:
        for finding in reports[name]["findings"]:
            what = f"{name}: {finding['evidence'][0]}"
            lines.append(
                f"| {finding['statement']} {finding['keyword']} | {what} | {finding['count']} |"
            )
    lines += ["", "| device | driver | what went wrong |", "| --- | --- | --- |"]
    for name in names:
        for run_ in reports[name]["runs"]:
            if not run_["right"] and run_["why"]:
                why = str(run_["why"]).replace("|", "\\|")
                lines.append(f"| {run_['case']} | {name} | {run_['outcome']}: {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", choices=[one.name for one in SUBJECTS], action="append")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    chosen = [one for one in SUBJECTS if arguments.device is None or one.name in arguments.device]
    reports = {one.name: run(one, arguments.folder) for one in chosen}
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
