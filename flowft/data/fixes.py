"""Fixes as commands that can be pasted: what is set already stays set, paths are quoted, lists grow instead of being replaced."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import yaml

from flowft import recipe

if TYPE_CHECKING:
    from flowft.data.source import Options

SET = "--set "
CHECK = "flowft data check"
GROWING = ("skip", "ignore")  # of these a fix adds to what is set already


def setting(**values: Any) -> str:
    """`--set 'data.skip=[demo_7]'` for skip=["demo_7"]: what a source says; `completed` makes the command."""
    return " ".join(SET + shlex.quote(f"data.{key}={written(value)}") for key, value in values.items())


def settings(fix: str | None) -> dict[str, Any]:
    """The settings of the `data` section in a fix that only sets; else nothing."""
    if fix is None or not fix.startswith(SET):
        return {}
    words = shlex.split(fix)
    given = [word for flag, word in zip(words[::2], words[1::2], strict=False) if flag == "--set"]
    return dict(recipe.section(recipe.from_assignments(given), "data"))


def merged(several: Iterable[str | None]) -> str | None:
    """One fix that does what all of these do; where one is a command of another kind, the first."""
    known = [fix for fix in dict.fromkeys(several) if fix is not None]
    if not known or not all(settings(fix) for fix in known):
        return known[0] if known else None
    both: dict[str, Any] = {}
    for fix in known:
        both = _added(both, settings(fix))
    return setting(**both)


def completed(fix: str | None, dataset: str, options: Options) -> str | None:
    """A fix that only sets, as the whole command for this dataset, with what was set before; others as they are."""
    if not (new := settings(fix)):
        return fix
    return check(dataset, _added(given(options), new))


def check(dataset: str, values: Mapping[str, Any]) -> str:
    """`flowft data check DATASET --set …`."""
    return command(CHECK, dataset, values)


def command(verb: str, dataset: str, values: Mapping[str, Any]) -> str:
    """`VERB DATASET --set …`, ready for a shell. Empty lists, which are the defaults, need not be set."""
    return f"{verb} {shlex.quote(dataset)} {setting(**{key: value for key, value in values.items() if value != []})}".rstrip()


def given(options: Options) -> dict[str, Any]:
    """The options that are not the defaults, as plain values."""
    plain = recipe.to_tree(options)
    return {f.name: plain[f.name] for f in fields(options) if getattr(options, f.name) != f.default}


def written(value: Any) -> str:
    """A value as YAML on one line, as --set reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True).strip().removesuffix("...").strip()


def _added(values: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(values)
    for key, value in new.items():
        grows = key in GROWING and isinstance(out.get(key), list)
        out[key] = list(dict.fromkeys([*out[key], *value])) if grows else value
    return out
