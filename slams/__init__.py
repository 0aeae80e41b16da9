"""A system moves, an observation sees it, a network inside a diffusion model holds what we believe.

An assimilation method joins belief and observation, evaluation says how well; data and training
make the belief, experiments run it all. The packages of `slams` are these nouns; `slams.core` is the
mathematics they share.
"""

__version__ = "0.2.0"
