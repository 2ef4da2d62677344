import numpy as np
import pytest

from iaunet.preprocessing.check_cases import robust_z


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3, 4], [-1.349, -0.674, 0, 0.674, 1.349]),
        ([5, 5, 5, 5, 9], [0, 0, 0, 0, 3.990]),
        ([2, 2, 2], [0, 0, 0]),
    ],
)
def test_robust_z_is_in_standard_deviations_that_outliers_do_not_widen(values, expected):
    np.testing.assert_allclose(robust_z(np.array(values, float)), expected, atol=1e-3)


def test_robust_z_of_normal_values_is_their_z():
    values = np.random.default_rng(0).normal(100, 7, 20_000)

    np.testing.assert_allclose(robust_z(values), (values - 100) / 7, atol=0.15)
