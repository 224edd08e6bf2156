"""`clip-koa fetch`."""

from typing import Annotated

from typer import Option

from clip_koa.memory import importing, keep_freed_memory
from clip_koa.released import released_model


def fetch(
    dicomweb: Annotated[str, Option(metavar="URL", help="The archive's service, as http://localhost:8042/dicom-web.")],
    study: Annotated[list[str] | None, Option(metavar="UID", help="A study; may be repeated.")] = None,
    query: Annotated[
        list[str] | None, Option(metavar="KEY=VALUE", help="Search for studies instead; may be repeated.")
    ] = None,
    model: Annotated[str, Option(help="Model folder or Hub id (default: the released one).")] = "",
    level: Annotated[float, Option(help="Of the confidence sets.")] = 0.9,
) -> int:
    """Grade the radiographs of an archive over DICOMweb.

    For each image a structured report and a picture are stored in its own study. Images that have them already are
    passed over. A token, where the archive asks for one, is read from CLIP_KOA_DICOMWEB_TOKEN.
    """
    model = model or released_model()
    with importing():
        from clip_koa.dicom.dicomweb import FetchSettings
        from clip_koa.dicom.dicomweb import fetch as run

    keep_freed_memory()
    return run(FetchSettings(model, dicomweb, tuple(study or ()), tuple(query or ()), level))
