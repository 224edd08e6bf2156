"""`clip-koa listen`."""

from pathlib import Path
from typing import Annotated

from typer import Option

from clip_koa.memory import importing, keep_freed_memory
from clip_koa.released import released_model


def listen(
    send_to: Annotated[str, Option("--send_to", metavar="AET@HOST:PORT", help="The archive that gets the results.")],
    spool: Annotated[Path, Option(metavar="DIR", help="Where images wait; it holds patients' data.")] = Path("spool"),
    port: Annotated[int, Option(min=1, max=65535, help="To listen on.")] = 11112,
    aet: Annotated[str, Option(metavar="AET", help="Title of this application entity.")] = "KOA",
    host: Annotated[str, Option(help="Address to listen on (default: this computer only).")] = "127.0.0.1",
    allow: Annotated[list[str] | None, Option(metavar="AET", help="Serve only this caller; may be repeated.")] = None,
    model: Annotated[str, Option(help="Model folder or Hub id (default: the released one).")] = "",
    level: Annotated[float, Option(help="Of the confidence sets.")] = 0.9,
    tls_certificate: Annotated[Path | None, Option("--tls_certificate", help="Of this end, PEM.")] = None,
    tls_key: Annotated[Path | None, Option("--tls_key", help="Its private key, PEM.")] = None,
    tls_authority: Annotated[Path | None, Option("--tls_authority", help="Who signed the other ends', PEM.")] = None,
    status_port: Annotated[
        int | None, Option("--status_port", min=1, max=65535, help="Serve the status as JSON there.")
    ] = None,
    reserve_megabytes: Annotated[int, Option("--reserve_megabytes", min=10, help="Of the disk, left free.")] = 500,
) -> None:
    """Grade radiographs that come by DICOM, for the archive.

    A machine or an archive sends them. For each image a structured report and a picture go into its study in the
    archive. Nothing that was accepted is lost when the command is killed: started again with the same spool it goes
    on. How it stands is in status.json of the spool.
    """
    model = model or released_model()
    with importing():
        from clip_koa.dicom.listener import ListenSettings
        from clip_koa.dicom.listener import listen as run

    keep_freed_memory()
    run(
        ListenSettings(
            model,
            spool,
            send_to,
            port,
            host,
            aet,
            tuple(allow or ()),
            level,
            tls_certificate,
            tls_key,
            tls_authority,
            status_port,
            reserve_megabytes,
        )  # fmt: skip
    )
