"""The command line: ``gritkit COMMAND``. Data goes to stdout, everything else to stderr, a failure is one line.

Every command is a module of its own that is imported when it is called, so ``gritkit --help`` loads neither torch nor
transformers. This module decides what an outcome looks like (exit codes, error lines, silence of libraries); it knows
nothing about what the commands do.

    0 done | 1 failed | 2 wrong usage | 130 interrupted | 141 the reader of our output left
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from gritkit.cli.commands import root_command
from gritkit.cli.wording import as_flags, one_line
from gritkit.errors import GritkitError, RecordError

INTERRUPTED = 130
NO_READER = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    args, debug = _without_debug(list(sys.argv[1:] if argv is None else argv))
    _silence()
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module="gritkit")
        try:
            code = _run(args or ["--help"])
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            _abandon_stdout()
            return NO_READER
        except Exception as error:
            if debug:
                raise
            line, code = _failure(error)
            print(f"Error: {line}", file=sys.stderr)
            if isinstance(error, OSError):
                _abandon_stdout()
            return code


def _run(args: list[str]) -> int:
    from typer import Abort, Exit

    command = root_command()
    if "_GRITKIT_COMPLETE" in os.environ:  # the shell asks what could come next
        command.main(args=args, prog_name="gritkit")
    try:
        with command.make_context("gritkit", args) as context:
            command.invoke(context)
        return 0
    except Exit as left:
        return int(left.exit_code)
    except Abort:
        return INTERRUPTED


def _without_debug(args: list[str]) -> tuple[list[str], bool]:
    """``--debug`` may stand anywhere before ``--``."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != "--debug"]
    return kept + args[end:], len(kept) < end


def _silence() -> None:
    """No telemetry of any library; our own messages as plain lines; output that no encoding can break."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    log = logging.getLogger("gritkit")
    if not log.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    encoding = str(getattr(sys.stdout, "encoding", None) or "utf-8")
    if hasattr(sys.stdout, "reconfigure") and not encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="replace")


class _ToStderr(logging.Handler):
    """Whatever ``sys.stderr`` is at the time of the message."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr)
        except Exception:  # logging's own rule: a message that cannot be written ends no program
            self.handleError(record)


def _failure(error: Exception) -> tuple[str, int]:
    """(the one line, the exit code) of an error."""
    format_message = getattr(error, "format_message", None)  # typer's own, of whichever click it carries
    if format_message is not None:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "gritkit"
        return f"{one_line(format_message()).rstrip('.')}. See '{where} --help'.", int(getattr(error, "exit_code", 2))
    if isinstance(error, RecordError):
        return str(error), 1  # it lists every bad record, one per line
    if isinstance(error, GritkitError):
        return as_flags(one_line(str(error))), 1
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{name}", 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: give shorter or fewer inputs, a smaller model, or another --device", 1
    what = f"unexpected {type(error).__name__}: {one_line(str(error))}"
    return f"{what} (run again with --debug to see where, and report it)", 1


def _abandon_stdout() -> None:
    """Nothing more can be written: let the interpreter's own flush at exit go nowhere instead of complaining."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
