"""What is of this session and machine alone: tokens, paths, names. No file of a release may hold it."""

import getpass
import os
import re
import socket
import tempfile
from pathlib import Path

from huggingface_hub import get_token

_TOKEN_NAMES = re.compile(r"TOKEN|SECRET|PASSW|PWD$|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST_TOKEN = 8


def is_token(name: str) -> bool:
    """Whether a variable of the environment is named as one that holds a secret."""
    return bool(_TOKEN_NAMES.search(name)) and name not in ("PWD", "OLDPWD")


def tokens() -> dict[str, str]:
    """The secrets of this session, and what each is: the Hub's token, and those of the environment."""
    found = {
        value: f"the value of {name} of this session's environment"
        for name, value in os.environ.items()
        if is_token(name) and len(value) >= _SHORTEST_TOKEN
    }
    if token := get_token():
        found[token] = "the token of this session"
    return found


def traces(*folders: Path, public: str = "") -> dict[str, str]:
    """What names this machine or who works on it, and what each is.

    Args:
        folders: of this session, besides the home, the working and the temporary folder.
        public: words that are published on purpose, as the name of a repository; a name in them is no find.

    A folder right below the root tells nothing. A user's or machine's name counts only where it has a digit in it:
    others are words, such as root or knee.
    """
    found = {}
    for folder in (Path.home(), Path.cwd(), Path(tempfile.gettempdir()), *folders):
        for path in {Path(os.path.abspath(folder)), folder.resolve()}:
            if len(path.parts) > 2:
                found[f"{path}{os.sep}"] = "a path of this machine"
    for name, what in (
        (socket.gethostname(), "the name of this machine"),
        (_user(), "the name of this machine's user"),
    ):
        if len(name) >= 6 and re.search(r"\d", name) and re.search(r"[A-Za-z]", name) and name not in public:
            found[name] = what
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number that no list of users has
        return ""
