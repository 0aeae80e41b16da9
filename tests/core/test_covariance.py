"""Laws of error covariances, against the dense formula of what was seen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slams.core.covariance import Covariance, Dense, Diagonal, Isotropic, stack

SIZE = 5
KINDS = ("diagonal", "dense")


def make(kind: str, rng: torch.Generator) -> tuple[Covariance, torch.Tensor]:
    """A covariance and the matrix it stands for."""
    root = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=rng)
    matrix = root @ root.mT + 0.5 * torch.eye(SIZE, dtype=torch.float64)
    if kind == "dense":
        return Dense(matrix), matrix
    return Diagonal(matrix.diagonal()), matrix.diagonal().diag()


def patterns() -> torch.Tensor:
    """(2, 3, size): everything, nothing, one value, and others, one of them twice."""
    seen = torch.ones(6, SIZE, dtype=torch.bool)
    seen[1] = False
    seen[2, 1:] = False
    seen[3, [0, 3]] = False
    seen[4, 2] = False
    seen[5] = seen[3]
    return seen.reshape(2, 3, SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_seen_says_nothing(kind, rng):
    """R^-1 r, r^T R^-1 r and G^T R^-1 G are those of the sub-matrix of R, at every leading axis."""
    covariance, matrix = make(kind, rng)
    seen = patterns()
    residual = torch.where(seen, torch.randn(2, 3, SIZE, dtype=torch.float64, generator=rng), 0.0)
    jacobian = torch.randn(SIZE, 4, dtype=torch.float64, generator=rng)
    precision = covariance.precision(seen)
    applied = covariance.apply(residual, precision)
    quadratic = covariance.quadratic(residual, precision)
    information = covariance.information(jacobian, precision)
    for b in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        b = tuple(b)
        index = seen[b].nonzero().squeeze(-1)
        inverse = torch.linalg.inv(matrix[index][:, index])
        r, g = residual[b][index], jacobian[index]
        expected = torch.zeros(SIZE, dtype=torch.float64)
        expected[index] = inverse @ r
        torch.testing.assert_close(applied[b], expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(quadratic[b], r @ inverse @ r, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(information[b], g.mT @ inverse @ g, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_precision_of_everything_is_the_inverse(kind, rng):
    covariance, matrix = make(kind, rng)
    precision = covariance.precision(torch.ones(SIZE, dtype=torch.bool))
    full = precision if precision.ndim == 2 else precision.diag()
    torch.testing.assert_close(full, torch.linalg.inv(matrix), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_covariance(kind, rng):
    """Each of 15 entries within 6 standard errors, sqrt((R_ii R_jj + R_ij^2) / n): false alarm 3e-8."""
    covariance, matrix = make(kind, rng)
    n = 20000
    draws = covariance.sample(n // 4, 4, rng=rng).reshape(n, SIZE)
    error = (draws.mT @ draws / n - matrix).abs()
    scale = ((matrix.diagonal()[:, None] * matrix.diagonal() + matrix**2) / n).sqrt()
    assert bool((error < 6 * scale + 1e-15).all())


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_and_widened_change_the_matrix_as_they_say(kind, rng):
    covariance, matrix = make(kind, rng)
    seen = torch.ones(SIZE, dtype=torch.bool)
    eye = torch.eye(SIZE, dtype=torch.float64)
    for changed, expected in [
        (covariance.scaled(2.5), 2.5 * matrix),
        (covariance.widened(0.7), matrix + 0.7 * eye),
    ]:
        precision = changed.precision(seen)
        full = precision if precision.ndim == 2 else precision.diag()
        torch.testing.assert_close(full @ expected, eye, rtol=0, atol=1e-11)


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_variance_that_is_none_is_refused(variance):
    with pytest.raises(ValueError, match="positive and finite"):
        Diagonal(torch.tensor([1.0, variance]))


def test_an_indefinite_matrix_is_refused_with_its_smallest_eigenvalue():
    with pytest.raises(ValueError, match="smallest eigenvalue -1"):
        Dense(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


@pytest.mark.parametrize("kind", KINDS)
@given(bits=st.lists(st.booleans(), min_size=3 * SIZE, max_size=3 * SIZE), seed=st.integers(0, 2**31))
def test_whitening_is_a_root_of_the_precision_of_what_was_seen(kind, bits, seed):
    """W^T W = P for every pattern: W read off column by column, members or not; NaN behind the mask has no effect."""
    rng = torch.Generator().manual_seed(seed)
    covariance, _ = make(kind, rng)
    seen = torch.tensor(bits).reshape(3, SIZE)
    precision = covariance.precision(seen)
    # one matrix for all where the same was seen
    full = (precision if precision.shape[-2:] == (SIZE, SIZE) else precision.diag_embed()).expand(
        3, SIZE, SIZE
    )
    eye = torch.eye(SIZE, dtype=torch.float64).expand(3, SIZE, SIZE)
    root = covariance.whiten(eye, seen[:, None]).mT  # members are the columns of the identity
    torch.testing.assert_close(root.mT @ root, full, rtol=1e-9, atol=1e-11)
    residual = torch.randn(3, SIZE, dtype=torch.float64, generator=rng)
    white = covariance.whiten(residual.masked_fill(~seen, torch.nan), seen)
    torch.testing.assert_close(white, (root @ residual[..., None]).squeeze(-1), rtol=1e-9, atol=1e-11)
    assert bool((white[~seen] == 0).all())
    for b in range(3):
        torch.testing.assert_close(covariance.whiten(residual[b], seen[b]), white[b], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_whitening_without_a_mask_is_whitening_of_everything(kind, rng):
    covariance, matrix = make(kind, rng)
    residual = torch.randn(2, 4, SIZE, dtype=torch.float64, generator=rng)
    white = covariance.whiten(residual)
    seen = torch.ones(2, 1, SIZE, dtype=torch.bool)
    assert torch.equal(white, covariance.whiten(residual, seen))
    quadratic = (residual * torch.linalg.solve(matrix, residual[..., None]).squeeze(-1)).sum(-1)
    torch.testing.assert_close(white.square().sum(-1), quadratic, rtol=1e-11, atol=0)


@pytest.mark.parametrize("kinds", [("diagonal", "diagonal"), ("diagonal", "dense"), ("dense",)])
def test_stacked_covariances_are_the_block_diagonal(kinds, rng):
    pairs = [make(kind, rng) for kind in kinds]
    joined = stack([covariance for covariance, _ in pairs])
    assert torch.equal(joined.dense(), torch.block_diag(*(matrix for _, matrix in pairs)))
    assert isinstance(joined, Diagonal) == ("dense" not in kinds)


@pytest.mark.parametrize("kind", KINDS)
def test_selection_is_the_sub_matrix(kind, rng):
    covariance, matrix = make(kind, rng)
    index = torch.tensor([4, 0, 2])
    assert torch.equal(covariance.select(index).dense(), matrix[index][:, index])
    assert covariance.to(torch.zeros(1)).dense().dtype == torch.float32


def test_isotropic_is_the_diagonal_of_one_variance(rng):
    """Also before it has a size, in what needs none; in the dtype of what it meets."""
    plain, sized = Isotropic(2.5), Isotropic(2.5).sized(SIZE, torch.zeros(1, dtype=torch.float64))
    assert torch.equal(sized.variance, torch.full((SIZE,), 2.5, dtype=torch.float64))
    residual = torch.randn(3, SIZE, dtype=torch.float64, generator=rng)
    assert torch.equal(plain.whiten(residual), sized.whiten(residual))
    assert plain.whiten(residual.float()).dtype == torch.float32
    assert torch.equal(plain.scaled(2.0).widened(1.0).sized(2).variance, torch.tensor([6.0, 6.0]))
    for question in (plain.dense, plain.sample, lambda: stack([plain, sized])):
        with pytest.raises(ValueError, match=r"call sized\(n\) first"):
            question()


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), float("inf")])
def test_an_isotropic_variance_that_is_none_is_refused(variance):
    with pytest.raises(ValueError, match="positive and finite"):
        Isotropic(variance)


@pytest.mark.parametrize(
    ("matrix", "reason"), [([[1.0, 0.2], [0.0, 1.0]], "not symmetric"), ([[1.0, 0.2]], "square matrix")]
)
def test_a_matrix_that_is_no_covariance_is_refused(matrix, reason):
    with pytest.raises(ValueError, match=reason):
        Dense(torch.tensor(matrix))
