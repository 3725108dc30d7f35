"""What is wrong with the user's data."""


class DataError(ValueError):
    """The data cannot be used; the message names the place (file, line, field or config key) and the fix."""


class RowError(DataError):
    """A row does not fit. `expected` is the same for all that fail in the same way, so that they can be counted."""

    def __init__(self, message: str, expected: str):
        super().__init__(message)
        self.expected = expected
