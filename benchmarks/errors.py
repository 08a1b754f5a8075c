"""The one error that ends a command without a traceback, and a parser of arguments that raises it."""

import argparse
from typing import NoReturn


class UserError(Exception):
    """A bad input: one clear sentence that says which value, where it stands and what to do.

    Commands print the sentence and end with `exit_status`; anything else that is raised is a defect of this project.
    """

    exit_status = 2


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence, as all commands do."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; `{self.prog} --help` explains the arguments")
