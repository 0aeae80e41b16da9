"""Recipes: YAML to typed settings; an unknown key is an error that names the nearest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slams import config
from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.settings import build, override, plain, read_tree
from slams.data.files.modality import Modality
from slams.diffusion.sampler import Sampler
from slams.pipeline.recipe_amounts import AmountsRecipe
from slams.pipeline.recipe_operators import OperatorRecipe
from slams.pipeline.recipe_rivals import RivalRecipe, check_names
from slams.training.fit import FitSettings


@dataclass(frozen=True)
class PlanetRecipe:
    """Settings of a synthetic archive to simulate first: years and folder."""

    years: tuple[int, ...] = ()
    folder: str = "data/planet"


@dataclass(frozen=True)
class DataRecipe:
    """Data of a run: modalities and parts.

    Attributes:
        modalities: Arguments of `slams.data.files.modality.Modality` by name.
        train, validation, test: First and last day of each part, inclusive.
        store: Folder of the stores made from the files.
        gross_errors: Whether to leave out values out of the possible range of their quantity or far outside the
            training's climate (docs/data.md); a modality may have its own.
        harmonics: Yearly harmonics of the seasonal mean; 0 is a constant.
        direct: For each state variable, the modalities that measure that same quantity (for interpolation).
        match: Rule for the record of a state: the one whose span of time ends ("end") or starts ("start") with the
            state's, or the one with its date ("date"), as always where files state no span.
    """

    modalities: dict[str, dict[str, Any]] = field(default_factory=dict)
    train: tuple[str, str] = ("", "")
    validation: tuple[str, str] = ("", "")
    test: tuple[str, str] = ("", "")
    store: str = "data/store"
    gross_errors: bool = True
    harmonics: int = 2
    direct: dict[str, tuple[str, ...]] = field(default_factory=dict)
    match: str = "end"


@dataclass(frozen=True)
class LatentRecipe:
    """The shared latent.

    Attributes:
        kind: Kind of latent: "grid" (coarser), "vector", "published" (that autoencoder, full grid) or "pixel" (none).
        channels: Number of channels of the latent; "pixel" has those of the states.
        patch: Cells along a side of a patch of "grid".
        hidden: Width of the corrections, of "grid" and "vector".
        scales: Weight of each modality in components and loss, of "grid" and "vector"; 1 where not named.
        trained: Folder or name of a run whose autoencoder is used unchanged; empty trains one.
        fit: Settings of the autoencoder's training.
    """

    kind: str = "grid"
    channels: int = 16
    patch: int = 2
    hidden: int = 16
    scales: dict[str, float] = field(default_factory=dict)
    trained: str = ""
    fit: FitSettings = field(default_factory=FitSettings)


@dataclass(frozen=True)
class PriorRecipe:
    """The prior over windows of latents: its closed form and the network that corrects it.

    Attributes:
        window: Number of days of a window, odd.
        patterns: Largest number of patterns of the closed form. 0: at most 400; of a "vector" latent those with the best
            closed-form posterior on validation days, and the prior is that of the latents within them.
        fraction: Fraction of variance explained by the patterns.
        shrink: Weight of the diagonal in the covariance of the patterns' coefficients, in [0, 1]; null takes the one that
            denoises validation windows best.
        published: Whether the network is the published U-Net.
        hidden: Channels of the network at each level.
        blocks: Residual blocks a level.
        fit: Settings of the network's training.
        network: Import path "package.module:Class" of a network in place of ours. It is built as Class(length=L,
            event=(*Z), **network_settings) and called as f(x_t, g, t) with x_t and the closed form's mean g of shape
            (*B, L, *Z); see `slams.diffusion.denoiser.NetworkDenoiser`. Its package must be trusted (`--trust`).
        network_settings: Plain keyword arguments of that class.
        networks: Number of random networks of observations that the network is trained on beside none, of latents "grid"
            and "vector" (see `slams.pipeline.model.conditional`); 0 trains the prior alone.
        leave_out: Whether errors, spreads and residuals of decoders are estimated leaving out one training season (year)
            at a time, at least four, with fits of the autoencoder and the closed form of their own (see
            `slams.pipeline.left_out`), in place of the validation part.
    """

    window: int = 3
    patterns: int = 0
    fraction: float = 0.999
    shrink: float | None = 0.0
    published: bool = False
    hidden: tuple[int, ...] = (64, 96)
    blocks: int = 2
    fit: FitSettings = field(default_factory=FitSettings)
    network: str = ""
    network_settings: dict[str, Any] = field(default_factory=dict)
    networks: int = 0
    leave_out: bool = False


@dataclass(frozen=True)
class AssimilationRecipe:
    """Settings of posterior draws.

    Attributes:
        members: Ensemble size. 1 leaves spread, CRPS and coverage empty.
        steps: Denoiser evaluations per draw.
        order, grid, eta: Settings of `slams.diffusion.sampler.Sampler`.
        corrections, tau: Langevin corrections per step and their size.
        method: "conditional" (the network knows the observations) or "guided" (the prior is guided by their likelihood);
            empty: the one with the lower CRPS on validation days.
        weight: Weight of classifier-free guidance of "conditional"; 1 is the posterior, 0 the prior.
        guidance: Guidance of "guided", and by modalities that the network was not trained on: "covariance", "sda"
            (gradient through the network, widened by gamma) or "published" (the encoded observations, degraded in the
            latent, are the observation).
        gamma: Width gamma of "sda".
        published_std: Noise of the "published" pseudo-observation [latent standard deviations].
        rows: Windows of members drawn at once, which bounds memory; 0: as many as fit in it. Parts have other noise.
        residual: Whether draws include the decoder's residual.
        uses: Observations that the analysis of a day uses in `slams assimilate`: "all", or "past" (a filter: none after
            that day).
        memory: Days up to its last observation that a filter's analysis and a forecast use, at least a window.
        horizon: Largest number of days from the last observation to the last day of a forecast.
        bias: Whether a bias of each observed modality, common to the days of a record, is estimated with the state; its
            prior is the spread between training years, at least four.
        operators: Operators of gridded modalities not observed cell by cell. Such a modality is given on its
            own grid, and its observations are computed; a state is then observed everywhere, regardless of
            `experiment.share`. A block or point with a missing cell is missing.
    """

    members: int = 16
    steps: int = 24
    order: int = 2
    grid: str = "snr"
    eta: float = 0.0
    corrections: int = 0
    tau: float = 0.5
    method: str = ""
    weight: float = 1.0
    guidance: str = "covariance"
    gamma: float = 0.01
    published_std: float = 0.1
    rows: int = 0
    residual: bool = True
    uses: str = "all"
    memory: int = 8
    horizon: int = 15
    bias: bool = True
    operators: dict[str, OperatorRecipe] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentRecipe:
    """Settings of the test.

    Attributes:
        sets: Names of the observed modalities by set; the last set is the main one.
        share: Fraction of observed cells of gridded state variables, for sets with such a variable.
        windows: Number of test windows; 0 analyses the whole test period.
        spacing: Least number of days between the starts of test windows.
        every: Days from one observed day to the next, in every window or trajectory from its first day on; 1 observes
            every day.
        shuffled: Whether to also run the main set with shuffled dates of its observation-role modalities.
        withhold: 0-based indices of stations withheld for verification in a separate run, by modality.
        leave_out: Whether to add an analysis of each training season by a fit without it to the results (see
            `slams.pipeline.left_out`).
        rivals, rival: Rivals to add to the results on the synthetic planet (see `recipe_rivals`), and their settings.
    """

    sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    share: float = 0.05
    windows: int = 16
    spacing: int = 15
    every: int = 1
    shuffled: bool = False
    withhold: dict[str, tuple[int, ...]] = field(default_factory=dict)
    leave_out: bool = False
    rivals: tuple[str, ...] = ()
    rival: RivalRecipe = field(default_factory=RivalRecipe)

    def __post_init__(self) -> None:
        check_names(self.rivals, self.rival, self.sets)


@dataclass(frozen=True)
class Recipe:
    """All settings of one trained run.

    Attributes:
        name: Name of the run.
        seed: Seed of all random draws.
        out: Folder of the run; logs/NAME if empty.
        device: Device of the networks: "auto" (a GPU if available), "cpu" or "cuda". Random numbers are drawn
            on the CPU, so that results agree up to rounding.
        until: Last stage; "codec" stops after the autoencoder, for other recipes (see `LatentRecipe.trained`).
        planet, data, latent, prior, amounts, assimilation, experiment: Settings of each part.
    """

    name: str = "run"
    seed: int = 0
    device: str = "auto"
    until: str = "report"
    out: str = ""
    planet: PlanetRecipe = field(default_factory=PlanetRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    latent: LatentRecipe = field(default_factory=LatentRecipe)
    prior: PriorRecipe = field(default_factory=PriorRecipe)
    amounts: AmountsRecipe = field(default_factory=AmountsRecipe)
    assimilation: AssimilationRecipe = field(default_factory=AssimilationRecipe)
    experiment: ExperimentRecipe = field(default_factory=ExperimentRecipe)

    def __post_init__(self) -> None:
        a, p = self.assimilation, self.prior
        for key, value, choices in (
            ("device", self.device, ("auto", "cpu", "cuda")),
            ("until", self.until, ("codec", "report")),
            ("data.match", self.data.match, ("end", "start", "date")),
            ("latent.kind", self.latent.kind, ("grid", "vector", "published", "pixel")),
            ("assimilation.guidance", a.guidance, ("covariance", "sda", "published")),
            ("assimilation.method", a.method, ("", "conditional", "guided")),
            ("assimilation.grid", a.grid, ("time", "snr")),
            ("assimilation.uses", a.uses, ("all", "past")),
        ):
            if value not in choices:
                *others, last = map(repr, choices)
                raise InvalidValueError(f"{key} is {', '.join(others)} or {last}, got {value!r}.")
        if a.members < 1 or a.steps < 1:
            raise InvalidValueError(
                f"assimilation needs at least one member and one step, got members={a.members}, steps={a.steps}."
            )
        if a.rows < 0:
            raise InvalidValueError(
                f"assimilation.rows is a number of windows, or 0 for as many as fit in memory, got {a.rows}."
            )
        if self.experiment.every < 1:
            raise InvalidValueError(f"experiment.every is a number of days, got {self.experiment.every}.")
        if a.memory < 1 or a.horizon < 1:
            raise InvalidValueError(
                f"assimilation.memory and horizon are numbers of days, got memory={a.memory}, horizon={a.horizon}."
            )
        if p.window < 1 or p.window % 2 == 0:
            raise InvalidValueError(f"prior.window must be odd (a day and its neighbours), got {p.window}.")
        self._check_networks()
        moved = [name for name, operator in a.operators.items() if operator.kind != "stride"]
        if moved and a.guidance == "published":
            raise InvalidValueError(
                f"guidance 'published' encodes grids, so it cannot use {moved[0]} through assimilation.operators; use "
                "guidance 'covariance' or the kind 'stride'."
            )
        Sampler(a.steps, a.eta, a.corrections, a.tau, order=a.order)
        for name, fit in (("latent", self.latent.fit), ("prior", p.fit)):
            for key in ("steps", "batch", "every"):
                if getattr(fit, key) < 1:
                    raise InvalidValueError(f"{name}.fit.{key} must be at least 1, got {getattr(fit, key)}.")

    def _check_networks(self) -> None:
        """Whether a network can be trained on observations where one is asked for."""
        a, p = self.assimilation, self.prior
        if p.networks < 0:
            raise InvalidValueError(f"prior.networks must be 0 or more, got {p.networks}.")
        if p.networks and self.latent.kind not in ("grid", "vector"):
            raise InvalidValueError(
                f"prior.networks={p.networks} needs an encoder for each modality, and latent.kind {self.latent.kind!r} "
                "has one for all; use latent.kind 'grid' or 'vector', or prior.networks: 0."
            )
        if p.leave_out and self.latent.trained:
            raise InvalidValueError(
                f"prior.leave_out fits an autoencoder without each season, but latent.trained takes that of "
                f"{self.latent.trained!r}, which has seen all; leave latent.trained empty, or set prior.leave_out: false."
            )
        if self.experiment.leave_out and not p.leave_out:
            raise InvalidValueError(
                "experiment.leave_out analyses each season by the fit without it, which prior.leave_out makes; set "
                "prior.leave_out: true and train again."
            )
        if p.networks and (p.network or p.published):
            raise InvalidValueError(
                f"prior.networks={p.networks} trains our own network on observations; leave out "
                f"{'prior.network' if p.network else 'prior.published'}, or set prior.networks: 0."
            )
        if a.method == "conditional" and not p.networks:
            raise InvalidValueError(
                "assimilation.method 'conditional' needs a network trained on observations; set prior.networks (24, say) "
                "and train again, or use 'guided'."
            )

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        """The modalities, in order.

        Raises:
            ValueError: If there is none, none is a state, or one has an unknown key.
        """
        found = {}
        for name, settings in self.data.modalities.items():
            tree = {"gross_errors": self.data.gross_errors, **settings, "name": name}
            if "files" in tree:
                tree["files"] = _paths(tree["files"])
            found[name] = build(Modality, tree, f"data.modalities.{name}.", kind="setting")
        if not any(m.role == "state" for m in found.values()):
            raise InvalidValueError(
                "a recipe needs at least one modality with role: state (data.modalities)."
            )
        groups: list[tuple[str, Iterable[str]]] = [
            *((f"experiment.sets.{key}", members) for key, members in self.experiment.sets.items()),
            *((f"data.direct.{key}", (key, *members)) for key, members in self.data.direct.items()),
            ("latent.scales", self.latent.scales),
            ("amounts.variables", self.amounts.variables),
            ("assimilation.operators", self.assimilation.operators),
            ("experiment.withhold", self.experiment.withhold),
        ]
        for group, members in groups:
            for member in members:
                if member not in found:
                    raise InvalidValueError(
                        f"{group} names {member!r}, which is no modality; there are {sorted(found)}."
                    )
        unbounded = [n for n in self.amounts.variables if found[n].transformed.lower is None]
        if unbounded:
            raise InvalidValueError(
                f"amounts.variables names {unbounded[0]!r}, whose transform has no bound."
            )
        return found

    @cached_property
    def states(self) -> list[str]:
        """Names of the state variables."""
        return [name for name, modality in self.modalities.items() if modality.role == "state"]

    @cached_property
    def analysed(self) -> list[str]:
        """Names of the state variables, and of amounts observed by some sets and analysed in the others."""
        return [*self.states, *(name for name in self.amounts.variables if name not in self.states)]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: Overrides such as "prior.fit.steps=200".

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: If the file is not there; the recipes shipped are listed.
        ValueError: If a key is unknown (the nearest is named) or a value has the wrong type.
    """
    path = Path(path)
    if not path.exists():
        shipped = sorted(p.stem for p in (Path(__file__).parent.parent / "configs").glob("*.yaml"))
        raise MissingFileError(f"no recipe at {path}; shipped in slams/configs: {', '.join(shipped)}.")
    tree = read_tree(path, "recipe")
    return from_tree(override(tree, overrides))


def from_tree(tree: Mapping[str, Any]) -> Recipe:
    """A typed recipe from nested mappings (see `load`)."""
    recipe: Recipe = build(Recipe, tree)
    assert recipe.states  # an invalid modality raises here, not in the middle of a run
    return recipe


def to_tree(recipe: Any) -> dict[str, Any]:
    """Nested plain mappings that `from_tree` reads back."""
    tree: dict[str, Any] = plain(recipe)
    return tree


def _paths(files: Any) -> tuple[str, ...]:
    """Files of a modality, with names such as $DATA standing for the paths in slams/config.py."""
    return tuple(config.resolve(str(path)) for path in ([files] if isinstance(files, str) else files))
