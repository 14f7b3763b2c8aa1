"""The errors a user can cause: one sentence that says what happened, one command that mends it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FlowftError(Exception):
    """A mistake that is the user's to mend: `what` happened (with the value), `fix` as a command."""

    exit_code = 1

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what if fix is None else f"{what}\nfix: {fix}")
        self.what = what
        self.fix = fix


class UsageError(FlowftError):
    """The command line or the recipe asks for something that does not exist."""

    exit_code = 2


class DataError(FlowftError):
    """A dataset that cannot be trained on as it is."""


class DamagedFile(DataError):
    """A dataset's file that is empty, cut short or no such file at all: only another copy mends it."""


class CheckpointError(FlowftError):
    """A checkpoint that is missing, damaged or of another kind."""


class EnvError(FlowftError):
    """An environment that cannot be built, differs from the checkpoint, or died."""


class TrainingError(FlowftError):
    """A run that cannot go on."""


class NonFiniteAction(FlowftError):
    """A policy that answers a finite observation with NaN or infinity."""


class MissingExtra(FlowftError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the package {package}, which is not installed", f'pip install "flowft[{extra}]"')


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'beta'?)`, or the list of what there is when nothing is near."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else f" (there are: {', '.join(names)})"
