import pytest

from slams.data.files.modality import Modality


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"role": "truth"}, "role of modality 'air' must be one of state, observation, got 'truth'"),
        ({"kind": "mesh"}, "must be one of grid, stations"),
        ({"transform": "sqrt"}, "must be one of none, log1p"),
        ({"source": "gfs"}, "must be one of auto, era5, cpc, olr"),
        ({"levels": (500, 500)}, "distinct"),
        ({"error_std": 0.0}, "must be positive"),
    ],
)
def test_a_modality_is_checked_at_the_door(settings, message):
    with pytest.raises(ValueError, match=message):
        Modality("air", ("a.nc",), "tas", **({"role": "observation"} | settings))


def test_a_modality_takes_lists_and_a_single_file():
    assert Modality("a", "a.nc", "t", "state").files == ("a.nc",)
    assert Modality("a", ["a.nc"], "t", "state", levels=[500, 850]).levels == (500.0, 850.0)
