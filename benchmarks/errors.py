"""The one error that ends a command without a traceback."""


class UserError(Exception):
    """A bad input: one clear sentence that says which value, where it stands and what to do.

    Commands print the sentence and end with `exit_status`; anything else that is raised is a defect of this project.
    """

    exit_status = 2
