"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do.

    Raised wherever input from outside (a config, a path, a checkpoint, a batch of labels) cannot be
    used. The command line prints the sentence without a traceback and exits with code 2.
    """
