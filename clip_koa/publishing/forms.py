"""What no release may hold, as a table of forms: secrets, traces of a machine, and names of people."""

import html
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

SECRET, MACHINE, PERSON = "secret", "machine", "person"
_SHOWN = 60  # characters of a find that a message shows
_SHOWN_OF_SECRET = 4


@dataclass(frozen=True)
class Form:
    """A kind of find: what it is called, what is wrong with it (`SECRET`, `MACHINE` or `PERSON`), and its pattern."""

    name: str
    kind: str
    pattern: re.Pattern


def _form(name: str, kind: str, pattern: str, flags: int = 0) -> Form:
    return Form(name, kind, re.compile(pattern, flags))


_I = re.IGNORECASE
_IMAGE = r"\.(?:png|jpe?g|jfif|tiff?|bmp|gif|webp|dcm|dicom|ima|nii(?:\.gz)?)\b"
# Where a path begins: not within a word, a relative path, a placeholder as {folder}/x, or an address as https://x.
_BEGINS = r"(?<![\w./~}\])*])"
_ROOTS = (
    "home|root|tmp|work|mnt|data|datasets|Users|scratch|var|media|srv|workspace|content|private|gpfs|lustre|beegfs|nfs|net|"
    "export|afs|cluster|projects?|storage|Volumes|kaggle|dbfs|run|opt|shared?|archive|raid|ssd|nvme|users|homes?|Library"
)

# The prefixes are those that their makers document for scanners; detect-secrets and gitleaks list the same.
FORMS = (
    _form("an access token of Hugging Face", SECRET, r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    _form("an access token of GitHub", SECRET, r"(?<![A-Za-z0-9])(?:gh[opusr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    _form("an access token of GitLab", SECRET, r"\bgl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat)-[\w-]{20,}"),
    _form("an access key of AWS", SECRET, r"(?<![A-Za-z0-9])(?:A[BKS]IA|ACCA|A3T[A-Z0-9])[A-Z0-9]{16}(?![A-Z0-9])"),
    _form("a secret key of AWS", SECRET, r"aws.{0,20}?(?:secret|key).{0,20}?[^\w/+][A-Za-z0-9/+]{40}(?![\w/+=])", _I),
    # OpenAI, Anthropic, OpenRouter and more; a digit tells it from words with hyphens.
    _form("an sk- key", SECRET, r"(?<![\w-])sk-(?=[\w-]*\d)[\w-]{20,}"),
    _form("a key of Stripe", SECRET, r"(?<![A-Za-z0-9])[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    _form("a key of Google", SECRET, r"(?<![\w-])(?:AIza[\w-]{35}|GOCSPX-[\w-]{20,}|ya29\.[\w-]{20,})"),
    _form("a token of Slack", SECRET, r"\bxox[abeoprs]-[\w-]{10,}|hooks\.slack\.com/services/\w"),
    _form("a token of npm or PyPI", SECRET, r"\bnpm_[A-Za-z0-9]{36}|\bpypi-AgE[\w-]{20,}"),
    _form(
        "an API key", SECRET,
        r"(?<![\w-])(?:gsk_[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|r8_[A-Za-z0-9]{30,}|dapi[0-9a-f]{32}|dop_v1_[0-9a-f]{40,}"
        r"|SG\.[\w-]{22}\.[\w-]{43}|wandb_v1_\w{20,}|KGAT_[0-9a-f]{20,})",
    ),
    _form(
        "a token of a service", SECRET,  # Telegram, Discord, Twilio, Mailchimp, Square, Artifactory
        r"\b(?:\d{8,10}:AA[\w-]{33}|[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,}|(?:AC|SK)[0-9a-f]{32}\b"
        r"|[0-9a-f]{32}-us\d{1,2}\b|sq0[a-z]{3}-[\w-]{22,}|AKC[A-Za-z0-9]{40,})",
    ),
    _form("an account key of Azure", SECRET, r"AccountKey=[\w+/=]{40,}|[?&]sig=[\w%+/=-]{20,}"),
    _form("a signed address", SECRET, r"X-(?:Amz|Goog)-(?:Signature|Credential)=\w", _I),
    _form("a JSON web token", SECRET, r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*"),
    _form("a private key", SECRET, r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PuTTY-User-Key-File"),
    _form("an address with a password", SECRET, r"\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@\"'<>{}]*:[^\s/@\"'<>{}]+@", _I),
    _form("an authorization", SECRET, r"\b(?:bearer|basic)\s+(?=[\w.~+/-]*\d)[\w.~+/-]{20,}", _I),
    _form(
        "a password or key", SECRET,
        r"(?:passw(?:or)?d|pwd|secret|api[_-]?key|(?:access|private)[_-]?key|(?:auth|access)[_-]?token)[\"']?\s*[:=]\s*"
        r"[\"']?(?=[^\s\"',;]*\d)[^\s\"',;(){}\[\]<>]{8,}", _I,
    ),
    _form("a path of a machine", MACHINE, r"\bfile:/+[^\s\"'<>]*", _I),
    _form("a path of a machine", MACHINE, rf"{_BEGINS}/(?:{_ROOTS})\d{{0,3}}/[\w.~-][^\s\"'<>]*"),
    # Any other absolute path of three parts or with a file's ending; what every system has names none.
    _form(
        "a path of a machine", MACHINE,
        rf"{_BEGINS}(?<!>)/(?!(?:usr|bin|etc|dev|proc|sys)/)[A-Za-z_][\w.-]*/(?:[\w.-]+/[\w.-]|[\w-]+\.[A-Za-z])[^\s\"'<>]*",
    ),
    _form("a path of a machine", MACHINE, r"(?<![A-Za-z0-9])[A-Za-z]:(?:\\{1,2}|/)[\w.][^\s\"'<>]*"),
    _form("a path of a machine", MACHINE, r"(?<![\w/.~-])~[\w-]*/(?!\.cache/)[\w.][^\s\"'<>]*"),
    _form("a path of a network", MACHINE, r"(?<!\\)\\\\(?:\\\\|[?.]\\)?[A-Za-z0-9][\w.$-]*\\{1,2}[\w.$-][^\s\"'<>]*"),
    _form("a path of a network", MACHINE, r"(?<![\w:/.*])//[A-Za-z0-9][\w.-]*/[\w$][^\s\"'<>]*"),
    _form(
        "an address of a network", MACHINE,
        r"\b(?:smb|cifs|nfs|afp|sftp|ftps?|ssh|rsync|s3[an]?|gs|gcs|abfss?|wasbs?|az|hdfs|dbfs|webdav)://[^\s\"'<>]+",
        _I,
    ),
    _form("a path on another machine", MACHINE, r"\b(?!git@)[\w.-]{1,64}@[A-Za-z][\w.-]*:[/~\w][^\s\"'<>]*"),
    _form(
        "an e-mail address", MACHINE,
        r"(?<![\w.+-])(?!git@)[\w.+-]+@(?!example\.)[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b",
    ),
    _form(
        "an address of a private network", MACHINE,
        r"(?<![\w.=])(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?!\.?\w)",
    ),
    # The corpus names a person by seven digits that begin with 9, and an X-ray by these and a side.
    _form(
        "a person's id", PERSON,
        r"(?<!\d)(?<!\d\.)9\d{6}(?!\d)(?!\.\d)(?![eE][+-]?\d)"
        r"(?!\s+(?:parameters|weights|bytes|tokens|steps|images|pixels|X-rays|people|files|MB|ms)\b)",
    ),
    _form("the name of an X-ray", PERSON, r"(?<![\d.])\d{5,10}[_-]?(?:[LR]|left|right)(?![A-Za-z0-9])", _I),
    _form(
        "a person's id", PERSON,
        r"(?<![A-Za-z])(?:patient|person|subject|participant|proband|donor)[\s_-]*(?:id|no|nr|num|number)?\.?[\s_:=#\"'-]*"
        r"[A-Z]{0,5}[_-]?\d{5,}", _I,
    ),
    _form(
        "a person's id", PERSON,
        r"(?<![A-Za-z])(?:ids?|mrn|accession(?: ?number)?)[\s_:=#\"'-]+[A-Z]{0,5}\d{6,}", _I,
    ),
    _form("a date of birth", PERSON, r"(?<![A-Za-z])(?:birth[\s_-]?da(?:te|y)|date of birth|dob)[\s_:=\"'-]*\d", _I),
    _form("a person's name of DICOM", PERSON, r"(?<![\w^\[])[A-Za-z][A-Za-z'-]+\^[A-Za-z][A-Za-z'-]*"),
    # 1.2.840.10008 is the root of the standard's own, which name syntaxes and not studies.
    _form("a UID of DICOM", PERSON, r"(?<![\w.])(?!1\.2\.840\.10008\.)[0-2](?:\.(?:0|[1-9]\d*)){5,}(?![\w.]*\d)"),
    _form("the name of an X-ray", PERSON, rf"[\w-]{{0,64}}\d{{4,}}[\w-]{{0,64}}{_IMAGE}", _I),
    _form("the name of an X-ray", PERSON, r"\b(?:IM|IMG|DSC|DICOM)[_-]?\d{4,}(?!\w)"),
    _form("the name of an X-ray", PERSON, r"\b(?:train|training|val|validation|test|auto_test)[/\\]+[0-4][/\\]+\w"),
)  # fmt: skip
IMAGE_NAME = _form("the name of an image", PERSON, rf"[\w-]{{1,128}}{_IMAGE}", _I)

# Digests, UUIDs and public registers hold digits that name nobody.
_NO_PERSON = re.compile(
    r"(?<![0-9A-Za-z])(?:(?=[0-9]*[a-f])[0-9a-f]{12,}|(?=[0-9]*[A-F])[0-9A-F]{12,})(?![0-9A-Za-z])"
    r"|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
    r"|\bPMC\d+|\bPMID:?\s?\d+|\bzenodo\.\d+|\b10\.\d{4,9}/[\w.-]+"
)
_MEANT = {
    SECRET: "revoke it, and build the release without it",
    MACHINE: "a release tells nothing of machines and addresses",
    PERSON: "names of people and of their X-rays stay at home",
}


def find_form(text: str, forms: Iterable[Form] = FORMS) -> str | None:
    """The first thing in a text that a release may not hold, as a message tells it; None where there is none.

    A text is also looked at as it reads without percent signs, HTML entities, wide letters and invisible characters.
    A secret is shown by its first characters only.
    """
    plain = "".join(letter for letter in unicodedata.normalize("NFKC", text) if unicodedata.category(letter) != "Cf")
    readings = dict.fromkeys((text, plain, unquote(text), html.unescape(text)))
    for form in forms:
        for reading in readings:
            if found := _first(form, reading):
                return f"{form.name} ({_shown(form, found)}): {_MEANT[form.kind]}"
    return None


def redact(text: str, values: Iterable[str] = ()) -> str:
    """A text for the screen: these values, and all that looks like a secret, replaced by ***."""
    for value in sorted(filter(None, values), key=len, reverse=True):
        text = text.replace(value, "***")
    for form in FORMS:
        if form.kind == SECRET:
            text = form.pattern.sub("***", text)
    return text


def _first(form: Form, text: str) -> str | None:
    spans = None
    for found in form.pattern.finditer(text):
        if form.kind != PERSON:
            return found[0]
        if spans is None:
            spans = [other.span() for other in _NO_PERSON.finditer(text)]
        if not any(start <= found.start() and found.end() <= end for start, end in spans):
            return found[0]
    return None


def _shown(form: Form, found: str) -> str:
    limit = _SHOWN_OF_SECRET if form.kind == SECRET else _SHOWN
    found = " ".join(found.split())
    return found if len(found) <= limit else f"{found[:limit]}..."
