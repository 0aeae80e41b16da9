"""Units as files spell them; the expected factors are written by hand, from the SI and the definitions of WMO."""

import pytest

from slams.data.files.units import assumes_daily_total, conversion, is_difference, same

CELSIUS = [
    "degrees C",
    "degree_Celsius",
    "deg C",
    "°C",
    "Celsius degrees",
    "C",
    "degC",
    "deg_c",
    "DEGREES CELSIUS",
]
FAHRENHEIT = (5 / 9, 459.67 * 5 / 9)
CONVERSIONS = [
    *[(celsius, "K", 1.0, 273.15) for celsius in CELSIUS],
    *[(kelvin, "degC", 1.0, -273.15) for kelvin in ("K", "k", "Kelvin", "kelvins", "degrees_kelvin", "°K")],
    ("degF", "K", *FAHRENHEIT),
    ("degrees Fahrenheit", "K", *FAHRENHEIT),
    ("tenths of degrees C", "K", 0.1, 273.15),
    ("0.1 degC", "degC", 0.1, 0.0),
    ("kPa", "hPa", 10.0, 0.0),
    ("MPa", "hPa", 1e4, 0.0),
    ("mPa", "hPa", 1e-5, 0.0),
    ("mb", "Pa", 100.0, 0.0),
    ("millibars", "hPa", 1.0, 0.0),
    ("hPa day-1", "Pa s-1", 100 / 86400, 0.0),
    ("m", "mm/day", 1000.0, 0.0),
    ("m of water equivalent", "mm", 1000.0, 0.0),
    ("cm", "mm", 10.0, 0.0),
    ("inches", "mm", 25.4, 0.0),
    ("MM", "mm", 1.0, 0.0),
    ("0.1 mm", "mm", 0.1, 0.0),
    ("mm/hr", "mm/day", 24.0, 0.0),
    ("mm per hour", "mm", 24.0, 0.0),
    ("mm/3h", "mm", 8.0, 0.0),
    ("mm/6 hours", "kg m-2", 4.0, 0.0),
    ("mm w.e.", "kg m-2", 1.0, 0.0),
    ("kg/m2/s", "mm/day", 86400.0, 0.0),
    ("kg.m-2.s-1", "mm", 86400.0, 0.0),
    ("KG M-2 S-1", "mm", 86400.0, 0.0),
    ("mm", "kg m-2 s-1", 1 / 86400, 0.0),
    ("m2 s-2", "gpm", 1 / 9.80665, 0.0),
    ("J kg-1", "geopotential meters", 1 / 9.80665, 0.0),
    ("dagpm", "gpm", 10.0, 0.0),
    ("J m**-2", "W m-2", 1 / 86400, 0.0),
    ("Wm-2", "W m**-2", 1.0, 0.0),
    ("g/kg", "kg kg-1", 1e-3, 0.0),
    ("1", "g/kg", 1e3, 0.0),
    ("%", "1", 0.01, 0.0),
    ("(0 - 1)", "%", 100.0, 0.0),
    ("knots", "m s-1", 1852 / 3600, 0.0),
    ("degC/day", "K day-1", 1.0, 0.0),
]


@pytest.mark.parametrize("have, want, scale, offset", CONVERSIONS)
def test_spellings_of_units_are_converted(have, want, scale, offset):
    found = conversion(have, want, "x")
    assert found[0] == pytest.approx(scale, rel=1e-12) and found[1] == pytest.approx(offset, abs=1e-9)


@pytest.mark.parametrize(
    "have, want, reason",
    [
        ("mm/month", "mm/day", "fixed size"),
        ("mm 3h-1", "mm", "fixed size"),
        ("days since 2000-01-01", "K", "fixed size"),
        ("hunits", "K", "'hunits'"),
        ("K", "m", r"ask for one of \['K', 'degC'\]"),
        ("%", "kg kg-1", "can't be reached"),
        ("degrees", "1", "can't be reached"),
        ("m", "m s-1", "can't be reached"),
        ("ms-1", "m s-1", "can't be reached"),
        ("mm", "Pa", "can't be reached"),
        ("unknown", "K", "states no unit"),
        ("", "K", "states no unit"),
    ],
)
def test_units_that_do_not_compare_are_refused_by_name(have, want, reason):
    with pytest.raises(ValueError, match=reason):
        conversion(have, want, "x")


def test_differences_of_temperature_have_no_offset():
    assert conversion("K", "degC", "x", difference=True) == (1.0, 0.0)
    assert conversion("degF", "K", "x", difference=True)[0] == pytest.approx(5 / 9, rel=1e-12)
    assert is_difference({"standard_name": "air_temperature_anomaly"})
    assert is_difference({"units_metadata": "temperature: difference"}) and not is_difference(
        {"long_name": "t"}
    )


def test_unknown_units_agree_with_themselves_only():
    assert same("dBZ x", "dBZ x") and not same("dBZ x", "hunits") and same("mm", "mm/day")
    assert assumes_daily_total("J m-2", "W m-2") and not assumes_daily_total("W m-2", "W/m2")
