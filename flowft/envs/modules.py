"""The user's own module, as in `--env my_module:MyEnv-v0`: found from the working folder too, and imported in words.

A console script has its own folder first on Python's path, not the working folder, so `my_module.py` beside the user would
not be found. The working folder is on the path for the import and while the environment is built, as `python -m` has it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from flowft.errors import EnvError, UsageError


def exists(module: str) -> bool:
    """Can `module` be found? Its first package only: the rest may be made while that is imported."""
    if not re.fullmatch(r"\w+(\.\w+)*", module):
        return False
    top = module.partition(".")[0]
    with working_folder():
        importlib.invalidate_caches()
        try:
            return top in sys.modules or importlib.util.find_spec(top) is not None
        except (ImportError, ValueError):
            return False


def load(module: str, env_id: str) -> None:
    """Import it, so that it registers its environments; what goes wrong is one EnvError."""
    if not re.fullmatch(r"\w+(\.\w+)*", module):
        name, bare = Path(module).stem or "my_module", env_id.rpartition(":")[2]
        raise UsageError(f"{module!r} is not the name of a module", f"--env {name}:{bare}, from the folder that holds {name}.py")
    if not exists(module):
        raise EnvError(
            f"there is no module {module.partition('.')[0]!r}: neither in {Path.cwd()} nor among the installed packages",
            "run it from the folder that holds the module, or: export PYTHONPATH=FOLDER",
        )
    try:
        with working_folder(), stdout_to_stderr():
            importlib.import_module(module)
    except (Exception, SystemExit) as error:  # it is the user's code, and may do anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        fix = f"pip install {missing}   (or the package that provides it)" if missing else f'python -c "import {module}"'
        raise EnvError(f"the module {module} cannot be imported: {what_and_where(error)}", fix) from error


@contextlib.contextmanager
def working_folder() -> Iterator[None]:
    """The working folder first on Python's path, inside the block."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the module took it away itself
            sys.path.remove(here)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Stdout carries results: what a simulator prints while it is imported or built goes to stderr, C libraries' words too."""
    sys.stdout.flush()
    c_library = ctypes.CDLL(None)
    c_library.fflush(None)
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        c_library.fflush(None)  # what C has buffered would be written at the process's end, to stdout
        os.dup2(kept, 1)
        os.close(kept)


def in_words(error: BaseException) -> str:
    """`ValueError: what it says`, on one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def what_and_where(error: BaseException) -> str:
    """`ValueError: what it says (my_module.py, line 7)`: an error of somebody else's code, and the last line of it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<") and "importlib" not in f.filename]
    theirs = frames and not frames[-1].filename.startswith(str(Path(__file__).parent))
    return in_words(error) + (f" ({frames[-1].filename}, line {frames[-1].lineno})" if theirs else "")
