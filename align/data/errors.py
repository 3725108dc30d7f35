"""What is wrong with the user's data."""


class DataError(ValueError):
    """The data cannot be used; the message names the place (file, line, field or config key) and the fix."""
