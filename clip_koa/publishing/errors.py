"""What goes wrong in publishing."""

from modeling_clip_koa import CLIPKOAError


class ReleaseError(CLIPKOAError, ValueError):
    """A release that must not be published; the message names the file and says why."""
