"""Named arrays against the shapes that a network must have.

A shape is written in symbols (`("latent", "width")`, or sums of them: `"observation+latent+1"`). What a symbol stands
for is what most arrays say, so that the array named in an error is the one that differs from the others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Arrays = Mapping[str, npt.NDArray[Any]]
SHOWN = 5  # problems in one error


class Entry(NamedTuple):
    """One array of the file, and the parameter that it becomes."""

    name: str  # in the file
    shape: tuple[str, ...]
    target: str | None  # flowft's name; None: known, and not needed
    change: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous


def solve(entries: Iterable[Entry], arrays: Arrays, known: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Symbol -> size, by majority of the arrays' dimensions; `known`: what else speaks for a size."""
    votes = {symbol: Counter(sizes) for symbol, sizes in known.items() if sizes}
    sums: list[tuple[list[str], int]] = []
    for entry in entries:
        shape = arrays[entry.name].shape if entry.name in arrays else ()
        for text, size in zip(entry.shape, shape, strict=True) if len(shape) == len(entry.shape) else ():
            terms = text.split("+")
            if len(terms) > 1:
                sums.append((terms, size))
            elif not text.isdigit():
                votes.setdefault(text, Counter())[size] += 1
    sizes = {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}
    rest: dict[str, Counter[int]] = {}
    for terms, size in sums:
        unknown = [term for term in terms if not term.isdigit() and term not in sizes]
        if len(unknown) == 1:
            others = sum(int(term) if term.isdigit() else sizes[term] for term in terms if term != unknown[0])
            rest.setdefault(unknown[0], Counter())[size - others] += 1
    return sizes | {symbol: counter.most_common(1)[0][0] for symbol, counter in rest.items()}


def problems(entries: Sequence[Entry], arrays: Arrays, sizes: Mapping[str, int]) -> list[str]:
    """What keeps the arrays from being these entries, each with its name; empty when nothing does."""
    known = {entry.name for entry in entries}
    out = [f"{name} is unknown" for name in arrays if name not in known]
    for entry in entries:
        expected = _shown([_size(text, sizes) for text in entry.shape])
        if entry.name not in arrays:
            out.append(f"{entry.name} is missing, expected shape {expected}")
            continue
        array = arrays[entry.name]
        if _shown(array.shape) != expected:
            out.append(f"{entry.name} has shape {_shown(array.shape)}, expected {expected}")
        elif array.dtype.kind != "f":
            out.append(f"{entry.name} holds {array.dtype}, expected float32")
        elif not (np.abs(array) <= np.finfo(np.float32).max).all():
            out.append(f"{entry.name} holds values that are not finite float32 numbers")
    return out


def listed(found: Sequence[str]) -> str:
    """Problems as one sentence."""
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def parameters(entries: Iterable[Entry], arrays: Arrays) -> dict[str, torch.Tensor]:
    """flowft's name -> tensor, of arrays that fit."""
    return {
        entry.target: entry.change(torch.from_numpy(np.array(arrays[entry.name], dtype=np.float32))).contiguous()
        for entry in entries
        if entry.target is not None
    }


def count(arrays: Arrays, pattern: str) -> int:
    """How many layers there are, at least 1: the number in `pattern`'s group is their place. A number far off counts for none."""
    places = {int(found[1]) for name in arrays if (found := re.match(pattern, name))}
    return 1 + max((place for place in places if place <= len(places)), default=0)


def _size(text: str, sizes: Mapping[str, int]) -> int | None:
    terms = [int(term) if term.isdigit() else sizes.get(term) for term in text.split("+")]
    return None if None in terms else sum(term for term in terms if term is not None)


def _shown(shape: Sequence[int | None]) -> str:
    """As numpy writes a shape; `?` for a size that nothing tells."""
    inner = ", ".join("?" if size is None else str(size) for size in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"
