"""Masks of robomimic's kind: lists of demonstrations under `mask/`, chosen by `data.demos`."""

from __future__ import annotations

import h5py
import numpy as np

from flowft.data import fixes
from flowft.data.check import Inspector
from flowft.data.files import numeric_order, text
from flowft.errors import DataError, did_you_mean

ALL = fixes.setting(demos="all")


def chosen(inspector: Inspector, file: h5py.File, demos: list[str]) -> list[str]:
    """The demos of the mask asked for, or all. A mask that names absent demos means that demos were lost from the file."""
    wanted = inspector.options.demos
    masks = found if isinstance(found := file.get("mask"), h5py.Group) else {}
    named = {key: [text(name) for name in np.ravel(masks[key][()])] for key in masks if isinstance(masks.get(key), h5py.Dataset)}
    if wanted not in (None, "all") and wanted not in named:
        raise DataError(f"{inspector.file}:mask/{wanted}: no such mask{did_you_mean(str(wanted), ['all', *named])}", ALL)
    if wanted == "all":
        return demos
    there = set(demos)
    for key in named if wanted is None else [str(wanted)]:
        if absent := [name for name in named[key] if name not in there]:
            first = numeric_order(absent)[0]
            inspector.report(f"mask/{key}", f"names {len(absent)} demos that are not in the file, {first} first", ALL)
    return demos if wanted is None else [name for name in demos if name in set(named[str(wanted)])]
