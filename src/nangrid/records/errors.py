"""Defines the errors that a user can fix; every other exception is a defect of nangrid."""


class InputError(ValueError):
    """A configuration or input that cannot be run.

    The message is one sentence: what is wrong, where, and what to type instead. Commands print it and exit with code 2
    before any training.
    """


class RecordError(InputError):
    """A record that cannot be read: cut short, newer than this nangrid, or misshapen. The message names the file."""
