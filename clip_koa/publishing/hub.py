"""Uploading a checked folder to the Hub: one atomic commit, then its tag, with errors that say what to do."""

import hashlib
import time
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.utils import get_session, hf_raise_for_status

from clip_koa.publishing.content_check import CheckedFile
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.forms import redact
from clip_koa.publishing.plain_files import read_plain
from clip_koa.publishing.private import tokens
from modeling_clip_koa import CLIPKOAError

# Seconds before each further try after 429, 5xx or a lost connection.
WAITS = (1, 5, 20, 60)
_LONGEST_WAIT = 300.0
_HELD = 10_000_000  # bytes of a file that is sent from memory; the Hub takes more as a large file only
_ADVICE = {
    400: "it refuses what was sent, such as a card with wrong metadata",
    401: "the Hub does not take the token: log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: use one with write access to that namespace",
    404: "no such repository, or the token may not see it",
    409: "it was changed or made by someone else meanwhile: look at it and push again",
    429: "too many requests: wait, and push again",
}
_CONNECTIONS = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}


class HubError(CLIPKOAError, RuntimeError):
    """An upload that did not succeed; the message says what the Hub answered and what to do."""


def upload(
    folder: Path, files: list[CheckedFile], repo_id: str, *, repo_type: str = "model", private: bool = False,
    tag: str | None = None, message: str = "Release", space_sdk: str | None = None,
) -> str:  # fmt: skip
    """Uploads the files in one commit, removes what the repository holds besides them, and tags the commit.

    What is sent are the bytes that were checked: small files from memory; a large one by its digest, under which the
    Hub takes no other bytes. Unchanged files are not sent. Not `upload_folder`, which may commit in parts.

    Args:
        files: what `check_folder` found in `folder`.

    Returns:
        The commit's id.

    Raises:
        HubError: the Hub refuses, or stays unreachable. Before the commit, what is published is as it was.
        ReleaseError: a file that is no longer the one that was checked.
    """
    api = HfApi()

    def create():
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk)

    _retried(f"creating {repo_id}", create)
    info = _retried(f"reading {repo_id}", lambda: api.repo_info(repo_id, repo_type=repo_type))
    if tag and tag in _retried(f"reading {repo_id}", lambda: _tags(api, repo_id, repo_type)):
        raise HubError(f"{repo_id} has the tag {tag} already: choose another.")
    contents = {file.name: _content(folder, file) for file in files}
    kept = {*contents, ".gitattributes"}
    stale = [sibling.rfilename for sibling in info.siblings or [] if sibling.rfilename not in kept]

    def commit():
        # Built anew for each try: operations remember how far they came.
        operations = [CommitOperationDelete(name) for name in stale]
        operations += [_addition(file, contents[file.name]) for file in files]
        return api.create_commit(
            repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=info.sha
        ).oid

    oid = _retried(f"uploading to {repo_id}", commit)
    if tag:
        _retried(f"tagging {repo_id}", lambda: api.create_tag(repo_id, tag=tag, revision=oid, repo_type=repo_type))
    return oid


def _content(folder: Path, file: CheckedFile) -> bytes | Path:
    """What is uploaded of a file: its bytes, or where they lie, if they are many."""
    if file.size > _HELD:
        return folder / file.name
    content = read_plain(folder, file.name)
    if content is None or hashlib.sha256(content).hexdigest() != file.sha256:
        raise _changed(file)
    return content


def _addition(file: CheckedFile, content: bytes | Path) -> CommitOperationAdd:
    operation = CommitOperationAdd(file.name, content if isinstance(content, bytes) else str(content))
    if operation.upload_info.sha256.hex() != file.sha256:
        raise _changed(file)
    return operation


def _changed(file: CheckedFile) -> ReleaseError:
    return ReleaseError(f"{file.name} was changed after it was checked: nothing was committed; publish anew.")


def validate_online(folder: Path, repo_type: str) -> None:
    """Has the Hub look at the metadata of a release's card.

    Raises:
        HubError: the Hub finds a fault in it, or cannot be asked.
    """
    card = folder / "README.md"

    def ask():
        # Not RepoCard.validate, which asks another address than HF_ENDPOINT before huggingface_hub 1.
        content = {"repoType": repo_type, "content": card.read_text(encoding="utf-8")}
        answer = get_session().post(f"{constants.ENDPOINT}/api/validate-yaml", json=content)
        if answer.status_code == 400:
            raise HubError(
                f"{card.name}: the Hub refuses its metadata: {redact(' '.join(answer.text.split()), tokens())[:300]}"
            )
        hf_raise_for_status(answer)

    _retried("validating the card", ask)


def _tags(api: HfApi, repo_id: str, repo_type: str) -> set[str]:
    return {tag.name for tag in api.list_repo_refs(repo_id, repo_type=repo_type).tags}


def _retried(what: str, call):
    """Calls, and calls again after what passes; raises `HubError`."""
    for wait in (*WAITS, None):
        try:
            return call()
        except (HubError, ReleaseError):
            raise
        except Exception as error:
            status, lost = _reason(error)
            asked = _wait_asked_for(error)
            if status is None and not lost:
                raise HubError(f"{what}: {_told(error)}") from None
            if wait is None or not (lost or status == 429 or status >= 500):
                advice = _ADVICE.get(status, "the Hub has trouble: push again later")
                answer = f"answered {status}" if status else "could not be reached"
                raise HubError(f"{what}: the Hub {answer}; {advice}.") from None
        time.sleep(max(wait, asked))


def _reason(error: BaseException | None) -> tuple[int | None, bool]:
    """The HTTP status in an error or in its causes, and whether the connection was lost."""
    lost = False
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status:
            return status, False
        modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
        lost = lost or bool(modules & _CONNECTIONS) or isinstance(error, ConnectionError)
        error = error.__cause__ or error.__context__
    return None, lost


def _wait_asked_for(error: BaseException | None) -> float:
    """Seconds of the answer's Retry-After, at most `_LONGEST_WAIT`; 0 where it has none."""
    while error is not None:
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        if str(headers.get("Retry-After", "")).isdigit():
            return min(float(headers["Retry-After"]), _LONGEST_WAIT)
        error = error.__cause__ or error.__context__
    return 0.0


def _told(error: Exception) -> str:
    return redact(" ".join(str(error).split()), tokens())[:300]
