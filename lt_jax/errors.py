"""The one error that is meant for people."""


class UserError(ValueError):
    """Something the user can put right. One line: what was wrong, where, and what would be right.

    `launch/` prints it without a traceback and exits with status 2.
    """
