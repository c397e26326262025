"""Settings of every test, those in documentation and docstrings included."""

from collections.abc import Iterator

import pytest

collect_ignore = ["docs/conf.py", "build", "dist"]


@pytest.fixture(autouse=True)
def _registered_mixers_stay_as_they_were() -> Iterator[None]:
    from jpmhc.layers import mixer

    before = dict(mixer._REGISTRY)
    yield
    mixer._REGISTRY.clear()
    mixer._REGISTRY.update(before)
