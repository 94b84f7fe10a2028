"""What all commands have in common, and the log that they show."""

from __future__ import annotations

import logging
from typing import Any

from typer.core import TyperCommand

#: The option of the program that may also follow a command.
VERBOSE = "--verbose"


class Command(TyperCommand):
    """A command that takes ``--verbose`` as the program does, and refuses a single option that is given twice."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, or end with a usage error."""
        options = args[: args.index("--")] if "--" in args else args
        if VERBOSE in options and not any(parameter.name == "verbose" for parameter in self.params):
            args = [argument for argument in args if argument != VERBOSE]
            log_to_stderr()
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in given:
            single = not getattr(parameter, "multiple", True) and not getattr(parameter, "is_flag", False)
            if single and given.count(parameter) > 1:
                ctx.fail(f"{parameter.opts[0]} is given {given.count(parameter)} times; give it once")
        return super().parse_args(ctx, args)


def log_to_stderr() -> None:
    """Show on standard error what the package logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    log = logging.getLogger("xai_abn")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
