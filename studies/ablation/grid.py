"""The cells of the ablation: which fields of the run configuration each changes."""

from dataclasses import dataclass, field

from clip_koa.data.corpus import is_drawn
from clip_koa.training.run_config import RunConfig, RunConfigError
from modeling_clip_koa import PROMPT_SETS
from modeling_clip_koa.configuration_clip_koa import CONSISTENCY_KINDS

CORNERS = ("plain", "random_flips", "symmetry", "consistency", "both")
# What every other cell is compared with: cross-entropy with random mirroring, which costs nothing and is no new idea.
BASELINE = "random_flips"
# Of the consistency loss, beside the configuration's own.
WEIGHTS = (0.5, 2.0, 8.0)
# What all cells have as many of: views, and so computing time; or epochs, as the paper compares.
EQUALS = ("compute", "epochs")


@dataclass(frozen=True)
class Cell:
    """One row of the table: a name, what it is in words, and the fields it changes."""

    name: str
    meaning: str
    changes: dict = field(default_factory=dict)
    views: int = 2  # of each X-ray in a step


def corner_cells() -> list[Cell]:
    """The corners {symmetry off, on} x {consistency off, on}, and cross-entropy with random flips."""
    alone = {"losses.symmetry": False, "losses.consistency_weight": 0.0}
    flipped = {**alone, "data.random_flip": 0.5}
    return [
        Cell("plain", "cross-entropy on the X-rays as they are", alone, views=1),
        Cell("random_flips", "cross-entropy, each X-ray mirrored at random", flipped, views=1),
        Cell("symmetry", "cross-entropy on both views", {"losses.consistency_weight": 0.0}),
        Cell("consistency", "cross-entropy on the X-ray, views must agree", {"losses.symmetry": False}),
        Cell("both", "cross-entropy on both views, which must agree"),
    ]


def further_cells(config: RunConfig) -> list[Cell]:
    """What `both` is made of: the kind and the weight of the consistency loss, and the prompts."""
    cells = [
        Cell(f"consistency_{kind}", f"both, with consistency {kind}", {"losses.consistency": kind})
        for kind in CONSISTENCY_KINDS
        if kind != config.losses.consistency
    ]
    cells += [
        Cell(f"weight_{weight:g}", f"both, consistency weight {weight:g}", {"losses.consistency_weight": weight})
        for weight in WEIGHTS
        if weight != config.losses.consistency_weight
    ]
    cells += [
        Cell(f"prompts_{name}", f"both, with {name} prompts", {"model.prompts": name})
        for name in PROMPT_SETS
        if name != config.model.prompts
    ]
    return cells


def find_cells(config: RunConfig, names: list[str]) -> list[Cell]:
    """The cells that `names` asks for, in the grid's order: names of cells, `corners`, or `all`.

    Raises:
        RunConfigError: an unknown name, or a configuration whose corners would not differ by the losses alone.
    """
    losses = config.losses
    if not (losses.symmetry and losses.consistency_weight > 0 and not config.data.random_flip):
        raise RunConfigError(
            "The ablation switches symmetry and consistency off by itself: give a configuration with losses.symmetry: "
            "true, a losses.consistency_weight above 0, and no data.random_flip."
        )
    if is_drawn(config.data.corpus):
        raise RunConfigError(
            f"data.corpus={config.data.corpus} draws other X-rays for each seed: write them to a folder and name it."
        )
    cells = {cell.name: cell for cell in corner_cells() + further_cells(config)}
    wanted = {part for name in names for part in {"corners": CORNERS, "all": tuple(cells)}.get(name, (name,))}
    if unknown := sorted(wanted - set(cells)):
        raise RunConfigError(f"--cells {unknown[0]}: use corners, all, or some of {', '.join(cells)}.")
    return [cell for name, cell in cells.items() if name in wanted]


def folder_name(cell: Cell, equal: str) -> str:
    """Of a cell's runs; those of two views are the same ones at equal compute and at equal epochs."""
    return cell.name if equal == "compute" or cell.views == 2 else f"{cell.name}_epochs"


def table_name(equal: str) -> str:
    """Of the files that hold a table, without their ending."""
    return "ablation" if equal == "compute" else f"ablation_{equal}"


def cell_config(
    config: RunConfig, cell: Cell, seed: int, folder: str, train_size: int, equal: str = "compute"
) -> RunConfig:
    """The run of one cell and seed, with as many optimizer steps as every other cell's.

    At equal compute there are as many views in each step: a cell that looks at one view of an X-ray takes twice the
    X-rays a step and twice the epochs. At equal epochs it takes the same X-rays as the others, and half their time.
    All cells keep their last weights, for a best checkpoint would be chosen among more of them where there are more
    epochs.

    Args:
        config: what all cells share; its batch is of X-rays with two views.
        train_size: X-rays of the train split.
        equal: of `EQUALS`.
    """
    shared = config.optimisation
    steps = train_size // (2 * shared.batch_size) * 2 * shared.epochs
    factor = 2 // cell.views if equal == "compute" else 1
    return config.changed(
        {
            **cell.changes,
            "run.seed": seed,
            "run.output_dir": folder,
            "run.best_metric": "last",
            "optimisation.batch_size": shared.batch_size * factor,
            "optimisation.epochs": shared.epochs * factor,
            "optimisation.max_steps": min(steps, shared.max_steps or steps),
        }
    )
