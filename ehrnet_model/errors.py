"""The one exception for what a user can mend."""


class EhrnetError(Exception):
    """Something the user can mend.

    The text is one sentence (or two): what is wrong, where, and what to do about it. The command
    line prints it without a traceback; the node logs it and puts it into its diagnostics.
    """
