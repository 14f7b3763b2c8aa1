"""The door: `flowft VERB …`. Verbs are imported when they are called, so that help costs no torch.

Stdout carries results, stderr everything else. A mistake of the user ends in `error:` and `fix:`; a mistake of flowft
ends in its traceback and says that it is one.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from flowft import __version__
from flowft.errors import FlowftError, UsageError, did_you_mean

INTERRUPTED = 130  # as a shell reports a process ended by Ctrl-C
BUG = 70  # sysexits.h: internal software error
# What the system refuses whoever asks: no room, no permission, a disk that is gone. Nobody's bug.
ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)

# verb -> (module:command, the line that `flowft --help` shows)
COMMANDS: dict[str, tuple[str, str]] = {
    "pretrain": ("flowft.cli.pretrain:pretrain", "Clone a flow policy from demonstrations and train its critic."),
    "finetune": ("flowft.cli.finetune:finetune", "Improve a checkpoint online; the same command continues a killed run."),
    "train": ("flowft.cli.train:train", "Learn a flow policy from scratch, from rewards alone."),
    "eval": ("flowft.cli.evaluate:evaluate", "Count successes of a checkpoint on seeds that training never uses."),
    "data": ("flowft.cli.data:data", "List, inspect, check, download, export and generate datasets."),
    "env": ("flowft.cli.env:env", "Check whether an environment is fit to learn in; list what there is."),
    "convert": ("flowft.cli.convert:convert", "Make a checkpoint from the parameters of a policy trained elsewhere."),
    "plot": ("flowft.cli.plot:plot", "Draw success, return or gradients against online steps, from one run or many."),
    "compare": ("flowft.cli.compare:compare", "Run several algorithms on one dataset with the same seeds; write one table and one plot."),
    "results": ("flowft.cli.results:results", "Write the tables of Markdown pages from the JSON beside them, or check that they agree."),
    "doctor": ("flowft.cli.doctor:doctor", "Show versions, devices, simulators, rendering and folders."),
}


class LazyGroup(click.Group):
    """A group whose commands are modules that nobody imports before they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(f"unknown command {args[0]!r}{did_you_mean(args[0], COMMANDS)}", "flowft --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog='Shell completion: eval "$(_FLOWFT_COMPLETE=bash_source flowft)"   (or zsh_source, fish_source)',
)
@click.version_option(__version__, prog_name="flowft")
def cli() -> None:
    """flowft: demonstrations in, a cloned flow policy, a policy improved by reinforcement learning out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 data or run, 2 usage, 130 interrupted, 70 a bug."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        # Standalone mode would end the process inside click, with click's own messages.
        code = cli.main(None if arguments is None else list(arguments), prog_name="flowft", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except FlowftError as error:
        return _complain(error.what, _whole(error.fix, sys.argv[1:] if arguments is None else arguments), error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "flowft"
        return _complain(error.format_message().rstrip("."), f"{path} --help", error.exit_code)
    except click.ClickException as error:
        return _complain(error.format_message(), None, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `flowft data list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            return _bug()
        return _complain(f"{error.filename or 'a file'}: {error.strerror}", f"df -h {shlex.quote(str(error.filename or '.'))}", 1)
    except Exception:
        return _bug()


def _bug() -> int:
    """For the exception that is being handled."""
    traceback.print_exc()
    print(f"error: this is a bug in flowft {__version__}, not a mistake of yours", file=sys.stderr)
    print("fix: report the lines above together with the output of `flowft doctor`", file=sys.stderr)
    return BUG


def _whole(fix: str | None, arguments: Sequence[str]) -> str | None:
    """A fix that is options, as the command that was given with them added: of options that are given twice the last counts."""
    return f"{shlex.join(['flowft', *arguments])} {fix}" if fix is not None and fix.startswith("--") else fix


def _complain(what: str, fix: str | None, code: int) -> int:
    print(f"error: {what}", file=sys.stderr)
    if fix:
        print(f"fix: {fix}", file=sys.stderr)
    return code
