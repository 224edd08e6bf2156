"""`clip-koa grade`: files are found, graded here or by a cluster, and printed or kept in a table."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from clip_koa.files import as_text
from clip_koa.grading import provenance
from clip_koa.grading.attachments import Attachments
from clip_koa.grading.backends import choose_backend, is_export
from clip_koa.grading.grade_table import GradeTableError, table_at, table_row
from clip_koa.grading.grader import BATCH_SIZE, GradedXray, Grader
from clip_koa.grading.growing_table import GrowingTable, begun_with
from clip_koa.grading.heat_maps import HeatMaps
from clip_koa.grading.inputs import find_xrays
from clip_koa.grading.lines import print_grades
from clip_koa.grading.pairing import pair_files
from clip_koa.grading.pairs import PairedFiles
from clip_koa.grading.sources import Waiting, is_remote
from clip_koa.interruption import work_is_kept
from dataset_script.exit_status import DONE, INCOMPLETE
from modeling_clip_koa.preprocessing_clip_koa import turns_of

_GO_ON = "The X-rays graded so far are kept: the same command goes on with the others."


@dataclass(frozen=True)
class GradeRun:
    """What is graded, by what, and where it goes.

    Attributes:
        inputs: files, folders of them, or patterns.
        model, level, backend, precision, keep_polarity, framing: see `Grader`.
        output: table, or folder for one; None prints.
        explain: folder for the X-rays under their heat maps; None: none.
        pairs: combine the grades of a person's two knees.
        dicom_results: folder for reports and pictures of DICOM images; None: none.
        ray: the Ray cluster that grades, as `clip_koa.grading.cluster.joined` takes it; None: this process does.
        cores: of the cluster, how many grade; None: all of its GPUs, or else all cores.
        readings: see `Grader`.
    """

    inputs: list[str]
    model: str
    output: Path | None = None
    level: float = 0.9
    backend: str = "auto"
    precision: str | None = None
    keep_polarity: bool = False
    explain: Path | None = None
    framing: str = "auto"
    pairs: bool = False
    dicom_results: Path | None = None
    ray: str | None = None
    cores: int | None = None
    readings: int = 1


def grade_inputs(run: GradeRun) -> int:
    """Grades the inputs; returns the exit status.

    Raises:
        CLIPKOAError, OSError: nothing can be done, or no more; the message says why.
    """
    _check_options(run)
    named = [file for file in find_xrays(run.inputs) if not _is_written(file, run)]
    if not named:
        raise GradeTableError("there is nothing to grade but what an earlier run wrote.")
    if (run.pairs or run.dicom_results) and (remote := next(filter(is_remote, named), None)):
        raise GradeTableError(f"{remote}: --pairs and --dicom_results need files on this machine.")
    paired = pair_files(named) if run.pairs else PairedFiles(named)
    if run.pairs:
        print(f"{len(paired.firsts)} people or studies have one file of each knee: these are graded together.")
    if run.output:
        run = _as_begun(run, table_at(run.output))
    if run.ray:
        return _grade_on_cluster(run, paired)
    if not run.output:
        grader, attachments = load(run, paired.firsts)
        ungraded = print_grades(grader, paired.files, run.level, attachments)
    else:
        with work_is_kept(_GO_ON), GrowingTable(table_at(run.output)) as table:
            grader, attachments = load(run, paired.firsts)
            table.begin(paired, made_by(run, grader), attachments.are_there)
            ungraded = write_table(grader, table, attachments)
    attachments.finish()
    _say_what_grades(run, grader)
    return INCOMPLETE if ungraded else DONE


def _as_begun(run: GradeRun, table: Path) -> GradeRun:
    """The run with the backend that began its table, where it is left to choose; a table is never of two."""
    begun, choice = begun_with(table).get("backend"), choose_backend(run.model)
    if run.backend != "auto" or begun == choice or {begun, choice} != {"pytorch", "openvino"} or is_export(run.model):
        return run
    print(f"The table was begun with --backend {begun}, and goes on with it.")
    return replace(run, backend=begun)


def _check_options(run: GradeRun) -> None:
    turns_of(run.readings, "--readings ", GradeTableError)
    for option, folder in (("--explain", run.explain), ("--dicom_results", run.dicom_results)):
        if folder and (run.backend == "onnx" or is_export(run.model)):
            raise GradeTableError(
                f"{option} {folder}: an exported network draws no heat maps; name the checkpoint that it came from."
            )
        if run.ray and folder:
            raise GradeTableError(f"{option} {folder}: a cluster writes rows alone; leave out --ray.")
    if run.ray and not run.output:
        raise GradeTableError(f"--ray {run.ray}: --output names the table or folder that the rows are written to.")
    if run.cores is not None and not run.ray:
        raise GradeTableError(f"--cores {run.cores} is for --ray alone: leave it out, or give --ray local.")
    if run.cores is not None and run.cores < 1:
        raise GradeTableError(f"--cores {run.cores}: give a number of at least 1.")


def _grade_on_cluster(run: GradeRun, paired: PairedFiles) -> int:
    """Has a Ray cluster grade, and is the one writer of what it says; returns the exit status."""
    from clip_koa.grading.cluster import joined  # needs the extra `ray`
    from clip_koa.grading.pool import Pool

    with work_is_kept(_GO_ON), GrowingTable(table_at(run.output)) as table, joined(run.ray):
        pool = Pool(run, run.ray, run.cores)
        loaded = pool.load()
        table.begin(paired, loaded.made_by)
        ungraded = fill_table(table, pool.grade)
    _say_what_grades(run, loaded)
    return INCOMPLETE if ungraded else DONE


def _say_what_grades(run: GradeRun, grader) -> None:
    if run.framing != grader.framing:
        print("X-rays are graded as they are: the model cannot find knees (clip-koa fit-framing teaches it).")
    if not grader.is_calibrated:
        print("No confidence sets: the model is not calibrated (clip-koa calibrate does it).")
    print("The grade is read from both views averaged. Research only: not for diagnosis.")


def _is_written(file: str, run: GradeRun) -> bool:
    """Whether a file lies in a folder that this run writes pictures or results into."""
    folders = [folder.resolve() for folder in (run.explain, run.dicom_results) if folder]
    return bool(folders) and not set(folders).isdisjoint(Path(file).resolve().parents)


def load(run: GradeRun, firsts: Set[str] = frozenset()) -> tuple[Grader, Attachments]:
    """The grader, and what writes all that is asked for besides the rows."""
    grader = load_grader(run, None, firsts)
    if getattr(grader.model, "was_compiled", False):
        kept = f"kept in {as_text(grader.model.entry)}" if grader.model.entry else "it could not be kept"
        print(f"The model was compiled for this processor ({kept}).")
    attachments = []
    if run.explain:
        attachments.append(HeatMaps(grader, run.explain))
    if run.dicom_results:
        from clip_koa.dicom.results import DicomResults  # needs the extra `pacs`
        from clip_koa.dicom.source import MadeBy

        made = MadeBy.of(run.model, made_by(run, grader))
        attachments.append(DicomResults(grader, run.dicom_results, made))
    return grader, Attachments(attachments)


def load_grader(run: GradeRun, device: str | None, firsts: Set[str] = frozenset()) -> Grader:
    """The grader of a run, on a torch device or the one that it chooses; `firsts` as `PairedFiles` has them."""
    return Grader(
        run.model,
        run.level,
        device,
        run.backend,
        run.precision,
        run.keep_polarity,
        run.framing,
        firsts if run.pairs else None,
        run.readings,
    )


def made_by(run: GradeRun, grader: Grader) -> str:
    """What the rows of a table depend on besides the X-rays."""
    # Named only where there are several: tables of before have one.
    readings = {"readings": run.readings} if run.readings > 1 else {}
    return provenance.describe(
        model=provenance.model_digest(run.model), code=provenance.code_digest(), level=run.level,
        backend=grader.backend, precision=grader.precision, keep_polarity=run.keep_polarity, framing=grader.framing,
        pairs=run.pairs, **readings,
    )  # fmt: skip


def write_table(grader: Grader, table: GrowingTable, attachments: Attachments | None = None) -> int:
    """Grades what the table has no row of, and puts it in its place; returns how many X-rays were not graded."""

    def grade(table: GrowingTable) -> Iterator[tuple[list[Waiting], list[list[dict]]]]:
        batches, graded = deque(), []

        def files() -> Iterator[str]:
            for waiting in table.batches(BATCH_SIZE):
                batches.append(waiting)
                yield from (xray.file for xray in waiting)

        for entry in (attachments or Attachments()).passing(grader.grade_each(files())):
            graded.append(entry)
            if len(graded) == len(batches[0]):
                yield batches.popleft(), entries_of(graded)
                graded = []

    return fill_table(table, grade)


def entries_of(graded: Iterable[list[GradedXray]]) -> list[list[dict]]:
    """The rows of each file's X-rays: one row, or one for each knee of a film."""
    return [list(map(table_row, entry)) for entry in graded]


def _xrays(count: int) -> str:
    return f"{count} X-ray" if count == 1 else f"{count} X-rays"


def fill_table(
    table: GrowingTable, grade: Callable[[GrowingTable], Iterable[tuple[list[Waiting], list[list[dict]]]]]
) -> int:
    """Adds what is graded to the table, and puts it in its place; returns how many X-rays were not graded.

    Args:
        grade: grades what the table has no row of; gives batches of X-rays, in any order, and their rows.
    """
    if table.gone:
        named = ", ".join(table.gone_names) + ("" if table.gone == len(table.gone_names) else ", ...")
        are, leave = ("is", "leaves") if table.gone == 1 else ("are", "leave")
        print(f"{_xrays(table.gone)} of the table {are} no longer named, and {leave} it: {named}")
    if other := table.count_of_other_code():
        print(
            f"{other} rows stay that another version of the code graded (column made_by): to grade all anew, remove "
            f"{as_text(table.path)}."
        )
    if table.is_current:
        ungraded = table.finish()
        print(f"{as_text(table.path)} is up to date: {_xrays(len(table.files))}.")
        return ungraded
    with tqdm(total=len(table.files), initial=table.kept, desc="grading", unit="X-ray") as bar:
        for waiting, entries in grade(table):
            table.add(waiting, entries)
            bar.update(len(waiting))
    ungraded, total = table.finish(), len(table.files)
    earlier = f" ({table.kept} of them before, {table.changed} again as the file had changed)" if table.kept else ""
    print(f"{as_text(table.path)}: {_xrays(total - ungraded)} graded{earlier}, {ungraded} not.")
    return ungraded
