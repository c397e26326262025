import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.arc.encode import encode
from benchmarks.arc.images import Variants
from tests.benchmarks.arc.test_augment import augmentations, grids


@settings(deadline=None)
@given(grids, grids, st.lists(augmentations, min_size=1, max_size=12))
def test_all_variants_at_once_are_the_variants_one_by_one(one, two, chosen):
    variants = Variants(chosen, side=30)
    np.testing.assert_array_equal(variants.encode(one), [encode(a.apply(one), 30) for a in chosen])
    extents = [np.maximum(a.apply(one).shape, a.apply(two).shape) for a in chosen]
    np.testing.assert_array_equal(variants.extent(one, two), extents)
