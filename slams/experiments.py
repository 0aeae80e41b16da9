"""The place of pipeline, twin experiments and papers until version 0.2; its import names the new ones."""

raise ModuleNotFoundError(
    "slams.experiments is gone since version 0.2: see slams.pipeline (recipes and trained runs), slams.twin (twin "
    "experiments) and slams.papers (published experiments).",
    name="slams.experiments",
)
