"""Comparison of mean errors against the t-tests of scipy, at their p-value exactly."""

import numpy as np
import pytest
import scipy.stats

from slams.evaluation.frontier import worse


@pytest.mark.parametrize("count", [2, 3, 8])
def test_methods_on_the_same_truths_are_told_apart_by_the_paired_test(count):
    rng = np.random.default_rng(count)
    one, other = rng.normal(1.2, 0.3, count), rng.normal(1.0, 0.3, count)
    p = scipy.stats.ttest_rel(one, other, alternative="greater").pvalue
    pair = dict(enumerate(one)), dict(enumerate(other))
    assert worse(*pair, p * 1.001) and not worse(*pair, p * 0.999)


@pytest.mark.parametrize("counts", [(2, 2), (3, 9), (8, 4)])
def test_methods_on_other_truths_are_told_apart_by_welchs_test(counts):
    rng = np.random.default_rng(sum(counts))
    one, other = rng.normal(1.2, 0.5, counts[0]), rng.normal(1.0, 0.2, counts[1])
    p = scipy.stats.ttest_ind(one, other, equal_var=False, alternative="greater").pvalue
    pair = dict(enumerate(one)), dict(enumerate(other, start=100))
    assert worse(*pair, p * 1.001) and not worse(*pair, p * 0.999)
