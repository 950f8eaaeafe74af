"""What a person is told in one line: what is wrong, what was found and what to do."""


class InputError(ValueError):
    """A mistake in data, flags or folders. The scripts print its one line and end with exit code 2."""


class HubError(Exception):
    """The hub could not be reached or did not take what it was given. The scripts print its one line, exit code 3."""
