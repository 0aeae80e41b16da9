"""Settings of the decoders of amounts."""

from dataclasses import dataclass

from slams.training.fit import FitSettings


@dataclass(frozen=True)
class AmountsRecipe:
    """Amounts such as rain, drawn with a point mass at their bound by decoders of their own.

    Attributes:
        variables: Names of modalities with a bounded transform. One with the role of an observation is analysed, too,
            and scored where a set does not observe it.
        hidden: Width of the networks.
        fit: Settings of their training; with no steps, draws are those of the codec's decoder, clipped at the bound.
    """

    variables: tuple[str, ...] = ()
    hidden: int = 32
    fit: FitSettings = FitSettings(steps=300, batch=8, learning_rate=4e-3, ema=0.99, every=50)
