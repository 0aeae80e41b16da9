"""Score-based latent assimilation in multimodal settings.

A system moves, an observation sees it, a network inside a diffusion model holds the prior, an assimilation method joins
both, evaluation scores the result; data and training make the prior; a pipeline leads from files to a report, a twin
experiment tries methods where the truth is known, papers hold the published numbers.

The names of `slams/__init__.pyi` are imported from their packages when they are first used, so that `import slams`
takes no time.
"""

import difflib
from typing import Any

import lazy_loader

__version__ = "0.2.0"

_lazily, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _lazily(name)
    except AttributeError:
        near = difflib.get_close_matches(name, __all__, n=1)
        hint = f"; did you mean slams.{near[0]}?" if near else "; dir(slams) lists what it has."
        raise AttributeError(f"module 'slams' has no attribute {name!r}{hint}") from None
