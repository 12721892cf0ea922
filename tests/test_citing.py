"""Citations: what is asked for, once each."""

from __future__ import annotations

import pytest

from mpklab.citing import cite
from mpklab.errors import MpkError


def test_cite_gives_mpklab_and_what_is_behind():
    assert cite().count("@") == 1 and "mpklab" in cite()
    text = cite("what_if", "explain", "bounds", "list_scheduling")
    assert text.count("curtsinger2015coz") == 1 and text.count("graham1969bounds") == 1 and text.count("@") == 4
    assert text.count("{") == text.count("}")
    with pytest.raises(MpkError, match="did you mean 'blame'"):
        cite("blames")
