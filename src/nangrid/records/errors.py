"""How do we tell a person's mistake from a program's?"""


class InputError(ValueError):
    """A config or input that cannot be run.

    The message is one sentence that says what is wrong, where, and what to type instead. Commands print it
    and exit with code 2 before any training.
    """


class RecordError(InputError):
    """A record that cannot be trusted: cut short, of another schema, or of another shape. Names the file."""
