"""virtiopy doctor: what this host can do, and how to get what it lacks."""

import json

import click


@click.command(epilog="Example: virtiopy doctor --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(as_json: bool) -> int:
    """Show what this host can do, and how to get what it lacks.

    Nothing on the host is changed. What is missing comes with its remedy.
    """
    from rich.console import Console
    from rich.table import Table

    from virtiopy.cli.abilities import examine

    findings = list(examine())
    if as_json:
        rows = [
            {"what": f.what, "works": f.works, "detail": f.detail, "remedy": f.remedy}
            for f in findings
        ]
        click.echo(json.dumps(rows, indent=2))
        return 0
    table = Table()
    for heading in ("What", "", "Found", "Remedy"):
        table.add_column(heading, overflow="fold")
    marks = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}
    for finding in findings:
        table.add_row(finding.what, marks[finding.works], finding.detail, finding.remedy)
    Console().print(table)
    return 0
