"""`flowft results [PAGE…]`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("pages", nargs=-1, type=click.Path(path_type=Path), metavar="[PAGE]...")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where a page or a picture is not what its JSON says.")
def results(pages: tuple[Path, ...], check: bool) -> None:
    """Write the tables of Markdown pages from the JSON beside them, or check that they agree.

    In the page, the lines between these two become the table; without #NAME, the file's only one:

    \b
    <!-- table: FILE.json#NAME -->
    <!-- end -->

    FILE.json may be the table.json that `flowft compare` wrote (#seeds: the counts of each run) or one of your own:
    `python -c "import flowft.report.tables as t; print(t.__doc__)"` describes it. Without PAGE: README.md and the
    pages below recipes/ that have a table.
    """
    from flowft.report import results as report

    found = [report.read(page) for page in report.pages(pages)]
    if check:
        report.require_agreement(found)
    else:
        report.write(found)
    for page in found:
        count = f"{len(page.markers)} table{'s' * (len(page.markers) > 1)}"
        click.echo(f"{page.path}: {count}, " + ("agrees" if check else "written" if page.stale else "unchanged"))
    for picture in () if check else sorted({str(path) for page in found for path, _ in page.pictures}):
        click.echo(f"{picture}: drawn")
