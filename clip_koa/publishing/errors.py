"""What goes wrong in publishing."""


class ReleaseError(ValueError):
    """A release that must not be published; the message names the file and says why."""
