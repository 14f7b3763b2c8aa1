"""Pages whose tables are written from the JSON beside them, so that the two cannot say different things.

A page is Markdown. Between two of its lines

    <!-- table: FILE.json#NAME -->
    <!-- end -->

belongs the table NAME of FILE.json (looked up from the page's own folder). The layouts of such a file, `flowft compare`'s
table.json among them, are in `report/tables.py` and, for several tasks at a glance, `report/summary.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flowft.errors import DataError, FlowftError, UsageError, did_you_mean
from flowft.report import card, plots, summary, tables

MARKER = re.compile(r"\s*<!--\s*table:\s*(?P<file>[^#]+?)\s*(?:#(?P<name>.+?)\s*)?-->\s*")
END = re.compile(r"\s*<!--\s*end\s*-->\s*")
FENCE = re.compile(r" {0,3}(```|~~~)")


@dataclass(frozen=True)
class Marker:
    """Where a table belongs: between the lines `first` and `last` of its page (from 1 on), both left as they are."""

    file: str
    name: str
    first: int
    last: int

    def __str__(self) -> str:
        return self.file + (f"#{self.name}" if self.name else "")


@dataclass(frozen=True)
class Page:
    """A page as it is and as its JSON would have it."""

    path: Path
    text: str
    wanted: str
    markers: tuple[Marker, ...]
    stale: tuple[Marker, ...]  # whose table differs
    pictures: tuple[tuple[Path, summary.Summary], ...]  # which are missing, or drawn from other numbers

    @property
    def differs(self) -> bool:
        return bool(self.stale or self.pictures)


def pages(given: Sequence[Path], home: Path | None = None) -> list[Path]:
    """The pages given; without any, README.md and the pages below recipes/ (in `home`, the working folder) that have a table."""
    if given:
        return list(given)
    root = home or Path()
    there = [path for path in (root / "README.md", *sorted((root / "recipes").rglob("*.md"))) if path.is_file()]
    found = [path for path in there if any(MARKER.fullmatch(line) for _, line in _prose(_read(path)))]
    if not found:
        raise UsageError(f"no page with a table among README.md and recipes/**/*.md in {root.resolve()}", "flowft results NOTES.md")
    return found


def read(path: Path) -> Page:
    """What a page says and what it should. FlowftError: the page, a marker of it or a JSON file is not as it has to be."""
    text = _read(path)
    found = markers(path, text)
    lines = text.splitlines(keepends=True)
    ending = "\r\n" if "\r\n" in text else "\n"
    stale, pictures = [], {}
    for marker in reversed(found):  # from the end, so that the numbers of the lines before stay true
        table, picture = _table(path, marker)
        wanted = [line + ending for line in table.splitlines()]
        if lines[marker.first : marker.last - 1] != wanted:
            stale.append(marker)
            lines[marker.first : marker.last - 1] = wanted
        if picture is not None and not summary.drawn(*picture):
            pictures[picture[0].resolve()] = picture
    return Page(path, text, "".join(lines), tuple(found), tuple(reversed(stale)), tuple(pictures.values()))


def write(found: Sequence[Page]) -> None:
    """The pages that differ and their pictures, each whole or not at all."""
    pictures = {path.resolve(): (path, content) for page in found for path, content in page.pictures}
    if pictures:
        plots.require_matplotlib("the picture of a summary")  # before anything is written
    try:
        for path, content in pictures.values():
            summary.draw(path, content)
        for page in found:
            if page.stale:
                card.write(page.path.resolve(), page.wanted)  # a link stays a link
    except OSError as error:
        folder = shlex.quote(str(Path(error.filename or ".").parent))
        raise FlowftError(f"{error.filename} cannot be written: {error.strerror}", f"chmod u+w {folder}") from error


def require_agreement(found: Sequence[Page]) -> None:
    """FlowftError: names each table and picture that differs from its JSON."""
    stale = [f"{page.path} line {marker.first} ({marker})" for page in found for marker in page.stale]
    stale += sorted({str(path) for page in found for path, _ in page.pictures})
    if stale:
        names = shlex.join(str(page.path) for page in found if page.differs)
        raise FlowftError(f"not what the JSON says: {', '.join(stale)}", f"flowft results {names}")


def markers(path: Path, text: str) -> list[Marker]:
    """The tables of a page, in order. FlowftError: there is none, or one has no end."""
    found: list[Marker] = []
    start: tuple[int, re.Match[str]] | None = None
    for number, line in _prose(text):
        begins, ends = MARKER.fullmatch(line), END.fullmatch(line)
        if start and begins:
            raise _unended(path, text, start[0])
        if begins:
            start = number, begins
        elif ends and start:
            found.append(Marker(start[1]["file"], start[1]["name"] or "", start[0], number))
            start = None
        elif ends:
            raise FlowftError(f"{path} line {number} ends a table that has not begun", f"sed -i {number}d {_quoted(path)}")
    if start:
        raise _unended(path, text, start[0])
    if not found:
        raise FlowftError(f"{path} has no place for a table, <!-- table: FILE.json --> and <!-- end -->", _add(path))
    return found


def load(path: Path) -> Any:
    """A JSON file, without NaN and without a key that stands twice (the later would quietly win)."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise DataError(f"{path}: {next(name for name in names if names.count(name) > 1)!r} stands twice in one place")
        return found

    def refuse(constant: str) -> Any:
        raise DataError(f"{path}: {constant} is no number that a table can show")

    def whole(digits: str) -> Any:
        return int(digits) if len(digits) <= 16 else refuse(digits[:16] + "…")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once, parse_constant=refuse, parse_int=whole)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", f"chmod u+r {_quoted(path)}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"python -m json.tool {_quoted(path)}"
        raise DataError(f"{path} is not JSON: {error}", f"mend it there; this shows the place: {where}") from error
    if not isinstance(content, dict) or not {"tables", "algorithms", "tasks"} & set(content):
        raise DataError(f"{path} holds no tables: neither `tables`, `tasks` nor `flowft compare`'s `algorithms`")
    return content


def _table(path: Path, marker: Marker) -> tuple[str, tuple[Path, summary.Summary] | None]:
    """A marker's table, and the picture that goes with it where it is a summary's."""
    source = path.parent / marker.file
    if not source.is_file():
        raise _unknown(path, marker, f"{source} is not there", marker.file, _beside(path))
    content = load(source)
    try:
        glance = summary.read(content, source, load) if "tasks" in content else None
        offered = tables.names(content) if glance is None else summary.VIEWS
        if marker.name not in offered:
            named = [f"#{name}" for name in offered if name]
            raise _unknown(path, marker, f"{source} has no table {marker.name!r}", f"#{marker.name}", named)
        if glance is None:
            return tables.markdown(content, marker.name), None
        return summary.table(glance, marker.name, path.parent), None if glance.picture is None else (glance.picture, glance)
    except DataError as error:
        at = f" (line {marker.first} of {path} asks for {marker})"
        raise DataError(f"{source}: {error.what}{at}", error.fix) from error


def _read(path: Path) -> str:
    """With its line endings as they are."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        there = [str(page.relative_to(path.parent)) for page in path.parent.glob("*.md")] if path.parent.is_dir() else []
        raise UsageError(f"no page {str(path)!r}{did_you_mean(path.name, there) if there else ''}", "flowft results README.md") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text: byte {error.start} is not UTF-8", "flowft results README.md") from error


def _prose(text: str) -> list[tuple[int, str]]:
    """The numbered lines of a page that are not in a fenced block, where a marker is an example."""
    found, fence = [], ""
    for number, line in enumerate(text.splitlines(), start=1):
        opens = FENCE.match(line)
        if opens and (not fence or fence == opens[1]):
            fence = "" if fence else opens[1]
        elif not fence:
            found.append((number, line))
    return found


def _unended(path: Path, text: str, first: int) -> FlowftError:
    """The end belongs behind what there is of a table."""
    lines, last = text.splitlines(), first
    while last < len(lines) and lines[last].startswith("|"):
        last += 1
    return FlowftError(f"{path}: the table that line {first} begins has no end", f"sed -i '{last}a <!-- end -->' {_quoted(path)}")


def _unknown(path: Path, marker: Marker, what: str, word: str, there: Sequence[str]) -> FlowftError:
    near = get_close_matches(word, there, n=1, cutoff=0.0) if len(there) == 1 else get_close_matches(word, there, n=1)
    old = marker.file if "#" not in word else word
    fix = f"sed -i '{marker.first}s|{_escaped(old)}|{near[0]}|' {_quoted(path)}" if near else None
    known = f" (there are: {', '.join(there)})" if there else ""
    return DataError(f"{path} line {marker.first}: {what}{known}", fix or _add(path, marker.file))


def _add(path: Path, file: str | None = None) -> str:
    """How a page comes to a table: with the JSON that lies beside it, or with one that has to be made first."""
    beside = _beside(path)
    if file is not None or not beside:
        folder = _quoted((path.parent / (file or "table.json")).parent)
        return f"flowft compare --dataset ID --algos A,B --out {folder}, which writes table.json there"
    name = "table.json" if "table.json" in beside else beside[0]
    return f"printf '\\n<!-- table: %s -->\\n<!-- end -->\\n' {shlex.quote(name)} >> {_quoted(path)}"


def _beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.glob("*.json"))


def _escaped(text: str) -> str:
    return re.sub(r"([.*^$\[\]\\|])", r"\\\1", text)


def _quoted(path: Path) -> str:
    return shlex.quote(os.fspath(path))
