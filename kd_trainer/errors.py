"""The error that a person can cure: one line of what is wrong, what was found and what to do."""


class InputError(ValueError):
    """A mistake in data, flags or folders. The scripts print its one line and end with exit code 2."""
