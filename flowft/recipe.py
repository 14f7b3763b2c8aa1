"""Recipes: nested plain mappings (YAML, `--set a.b=v`) turned into frozen dataclasses, once, with types checked.

A recipe holds only what differs from the defaults. Config dataclasses live beside the code that they configure; this
module knows none of them. It coerces by the dataclass's annotation (PyYAML reads `3e-4` as text and `on` as a bool).
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from flowft.errors import UsageError, did_you_mean

T = TypeVar("T")
Tree = dict[str, Any]


def read(name_or_path: str, home: Path | None = None) -> Tree:
    """A recipe by path (`my.yaml`) or by name (`scripted/lift`, looked up in `recipes/` and then inside the package)."""
    candidates = [Path(name_or_path)] + [root / f"{name_or_path.removesuffix('.yaml')}.yaml" for root in recipe_folders(home)]
    for path in candidates:
        if path.is_file():
            try:
                tree = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_OnceEach) or {}
            except _Repeated as error:
                raise UsageError(f"{path} has {error}: the second would replace the first; write them as one") from error
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
            except OSError as error:
                raise UsageError(f"{path} cannot be read: {error.strerror}") from error
            if not isinstance(tree, dict):
                raise UsageError(f"{path} holds {type(tree).__name__}, not a mapping of settings")
            return tree
    raise UsageError(f"no recipe {name_or_path!r}{did_you_mean(name_or_path, available(home))}")


class _Repeated(Exception):
    """A key that stands twice in one mapping."""


class _OnceEach(yaml.SafeLoader):
    """YAML whose mappings have each key once; PyYAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *defaults`, whose keys may be overridden: that is what it is for
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key, (list, dict)):
                continue  # PyYAML says that it cannot be a key
            if key in lines:
                where = f"lines {lines[key]} and {line}" if line != lines[key] else f"line {line}"
                raise _Repeated(f"{key} twice, in {where}")
            lines[key] = line
        return super().construct_mapping(node, deep)


def available(home: Path | None = None) -> list[str]:
    """Names of all recipes that `read` finds without a path."""
    found = {str(p.relative_to(root).with_suffix("")) for root in recipe_folders(home) if root.is_dir() for p in root.rglob("*.yaml")}
    return sorted(found)


def recipe_folders(home: Path | None = None) -> list[Path]:
    """Where recipes lie: the working folder's `recipes/`, a checkout's, and the copy inside an installed wheel."""
    package = Path(__file__).parent
    return [(home or Path.cwd()) / "recipes", package.parent / "recipes", package / "_recipes"]


def merge(*trees: Mapping[str, Any]) -> Tree:
    """Later trees win; mappings are merged key by key."""
    out: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merge(out[key], value) if both else (merge(value) if isinstance(value, Mapping) else value)
    return out


def from_assignments(assignments: typing.Iterable[str]) -> Tree:
    """`["finetune.beta=10", "policy.network=flow_t"]` as a tree."""
    tree: Tree = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip("."):
            raise UsageError(f"--set {text!r} is not of the form section.key=value", "--set finetune.beta=10")
        try:
            leaf: Any = yaml.load(value, Loader=_OnceEach) if value else None
        except _Repeated as error:
            raise UsageError(f"--set {text!r} has {error}") from error
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text!r}: {value!r} is not YAML", f"--set '{key}=\"{value}\"', if it is meant as text") from error
        for part in reversed(key.split(".")):
            leaf = {part: leaf}
        tree = merge(tree, leaf)
    return tree


def assemble(named: Mapping[str, Any], given: Mapping[str, Any]) -> Tree:
    """A recipe and what the command line gives, which wins over all of it, the entries of its `algos` section included.

    What the command line itself gives for one algorithm (`--set algos.rlpd.…`) wins over what it gives for all.
    """
    entries, own = section(named, "algos"), section(given, "algos")
    rest = {key: value for key, value in given.items() if key != "algos"}
    both = {name: _overridden(_overridden(section(entries, name), rest), section(own, name)) for name in [*entries, *own]}
    return _overridden(named, rest) | ({"algos": both} if both else {})


def for_algorithm(tree: Mapping[str, Any], name: str) -> Tree:
    """The recipe as it is for one algorithm: its entry of the `algos` section merged over the rest, that section gone."""
    rest = {key: value for key, value in tree.items() if key != "algos"}
    return _overridden(rest, section(section(tree, "algos"), name))


def section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a recipe; absent or empty: no settings."""
    found = tree.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise UsageError(f"{name} is {found!r}, not a section of settings", f"--set {name}.KEY=VALUE")
    return found or {}


def _overridden(tree: Mapping[str, Any], by: Mapping[str, Any]) -> Tree:
    """Both merged; `policy.net` holds the settings of one network, and another one does not inherit them."""
    policy, network = section(tree, "policy"), section(by, "policy").get("network")
    if network and network != policy.get("network"):
        tree = {**tree, "policy": {key: value for key, value in policy.items() if key != "net"}}
    return merge(tree, by)


def build(config: type[T], tree: Mapping[str, Any], where: str) -> T:
    """The dataclass `config` from `tree`. Unknown keys and wrong types are errors that name `where.key`."""
    fields = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            raise UsageError(f"unknown setting {_at(where, key)!r}{did_you_mean(str(key), fields)}")
    hints = typing.get_type_hints(config)
    values = {key: coerce(hints[key], value, _at(where, key)) for key, value in tree.items()}
    try:
        return config(**values)
    except (ValueError, TypeError) as error:  # a dataclass's own __post_init__ check
        raise UsageError(f"{where}: {error}" if where else str(error)) from error


def require(config: object, *names: str, least: float | None = None, above: float | None = None, most: float | None = None) -> None:
    """For a `__post_init__`: ValueError where a number is below `least` (or not above `above`, 0), or beyond `most`. None passes."""
    if most is not None:
        words = f"in [{least:g}, {most:g}]" if above is None else f"in ({above:g}, {most:g}]"
    else:
        words = f"at least {least:g}" if above is None else "positive"
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        low = value < least if least is not None else above is not None and value <= above
        if low or (most is not None and value > most):
            raise ValueError(f"{name} is {value}; it must be {words}")


def split(configs: Mapping[str, type[Any]], tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    """One section of a recipe that configures several dataclasses (a loop and its algorithm): each takes its own keys."""
    owner = {f.name: name for name, config in configs.items() for f in dataclasses.fields(config)}
    parts: dict[str, Tree] = {name: {} for name in configs}
    for key, value in tree.items():
        if key not in owner:
            raise UsageError(f"unknown setting {_at(where, key)!r}{did_you_mean(str(key), owner)}")
        parts[owner[key]][key] = value
    return {name: build(config, parts[name], where) for name, config in configs.items()}


def coerce(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind` (int, float, bool, str, tuple, Literal, Optional, a nested dataclass), or an error that names `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        means_none = "none" not in [word for option in arguments for word in typing.get_args(option)]  # a choice may be called so
        if type(None) in arguments and (value is None or (value == "none" and means_none)):
            return None
        options = [option for option in arguments if option is not type(None)]
        for option in options:
            try:
                return coerce(option, value, where)
            except UsageError:
                if option is options[-1]:
                    raise
    if origin is typing.Literal:
        text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if text in arguments:
            return text
        raise UsageError(f"{where} is {value!r}{did_you_mean(str(value), map(str, arguments))}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where} is {value!r}, not a list", f"--set {shlex.quote(f'{where}=[{value}]')}")
        each = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(each) != len(value):
            raise UsageError(f"{where} has {len(value)} values, not {len(each)}: {value!r}")
        return tuple(coerce(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(each, value, strict=True)))
    if value is None and (kind is dict or origin is dict or dataclasses.is_dataclass(kind)):
        value = {}  # an empty section, as YAML writes it
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} is {value!r}, not a section of settings")
        return build(kind, value, where)
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} is {value!r}, not a section of settings")
        return dict(value)
    return _scalar(kind, value, where)


def to_tree(config: Any) -> Tree:
    """A dataclass as plain values again (tuples become lists), for checkpoints and run folders."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names whose values differ, as `finetune.beta: 10 -> 30`."""
    out: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}: {a} -> {b}")
    return out


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                if math.isfinite(number := float(value)):
                    return number
            except (ValueError, OverflowError):
                pass
    elif kind is int:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                if float(value) == int(float(value)):
                    return int(float(value))
            except (ValueError, OverflowError):
                pass
    elif kind is str and value is not None and not isinstance(value, (Mapping, list, tuple)):
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    name = getattr(kind, "__name__", str(kind))
    raise UsageError(
        f"{where} is {value!r}, not {'a number' if name in ('int', 'float') else name}" + (" without a fraction" if name == "int" else "")
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_tree(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _at(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
