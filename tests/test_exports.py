"""Public names of the packages that are imported when they are first used."""

import importlib

import pytest


@pytest.mark.parametrize("package", ["slams.core", "slams.diffusion", "slams.networks", "slams.twin"])
def test_every_name_of_a_package_is_there_and_no_other_is(package):
    module = importlib.import_module(package)
    assert module.__all__ and set(module.__all__) <= set(dir(module))
    assert all(callable(getattr(module, name)) for name in module.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
