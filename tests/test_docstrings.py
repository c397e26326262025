"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

import benchmarks
import jpmhc


def modules(package):
    yield package.__name__
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            yield found.name


# Imported by name, so that a module does not take the place of a function of its name in the package above it, as
# pytest's own collection would have it.
@pytest.mark.parametrize("name", [*modules(jpmhc), *modules(benchmarks)])
def test_examples_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
