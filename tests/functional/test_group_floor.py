# SPDX-License-Identifier: Apache-2.0
"""Who may be the worst-off group."""

import pytest

from trl_maxmin.functional.group_floor import has_evidence, required_annotators


@pytest.mark.parametrize(("total", "needed"), [(1130, 10), (326, 10), (200, 10), (100, 5), (50, 3), (20, 1), (6, 1)])
def test_ten_people_or_a_twentieth(total, needed):
    assert required_annotators(total) == needed


def test_by_hand():
    assert has_evidence([200, 117, 6, 3], [6000, 3510, 180, 90]).tolist() == [True, True, False, False]
    assert has_evidence([40, 5], [2400, 300]).tolist() == [True, True], "a tenth of fifty people is a group"
    assert has_evidence([45, 3], [900, 20]).tolist() == [True, False], "of twenty pairs"
    assert has_evidence([300, 4], [9000, 120], min_annotators=4).tolist() == [True, True]
    assert has_evidence([300, 9], None).tolist() == [True, False]
    assert has_evidence(None, [300, 9]).tolist() == [True, False]
    assert has_evidence(None, None) is None
    assert has_evidence([1, 1], [9, 9]).tolist() == [True, True], "where nobody has enough, somebody has to be served"
    assert has_evidence([9, 0], [90, 0], min_annotators=1, min_pairs=0).tolist() == [True, False]


@pytest.mark.parametrize("counts", [([1], [2, 3]), ([-1, 4], None)])
def test_bad_input_is_named(counts):
    with pytest.raises(ValueError, match="one number a component, none negative"):
        has_evidence(*counts)
