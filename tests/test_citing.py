"""Citations: what is asked for, once each."""

from __future__ import annotations

import re

import pytest

import mpklab
from mpklab import analysis
from mpklab.citing import cite
from mpklab.errors import MpkError
from mpklab.schedule import POLICIES, POOLS


def test_cite_gives_mpklab_and_what_is_behind():
    assert cite().count("@") == 1 and "mpklab" in cite()
    text = cite("what_if", "explain", "bounds", "list_scheduling")
    assert text.count("curtsinger2015coz") == 1 and text.count("graham1969bounds") == 1 and text.count("@") == 4
    assert text.count("{") == text.count("}")
    with pytest.raises(MpkError, match="did you mean 'blame'"):
        cite("blames")


ANALYSES = [name for name in analysis.__all__ if callable(getattr(analysis, name))]


@pytest.mark.parametrize("name", [*ANALYSES, *POLICIES, *POOLS])
def test_every_analysis_and_every_policy_can_be_cited(name):
    text = mpklab.cite(name)
    assert text.startswith("@software{mpklab,") and text.count("{") == text.count("}")
    keys = re.findall(r"^@\w+\{(\w+),$", text, re.M)
    assert len(keys) == len(set(keys)) == text.count("@")
    fields = re.findall(r"\b(author|title|year) += \{", text)
    assert (
        fields.count("author") == fields.count("title") == len(keys) == fields.count("year") + 1
    )  # no year for mpklab


def test_what_has_no_paper_behind_it_is_mpklabs_own():
    assert cite("bubbles") == cite() and cite("zigzag") == cite()
    assert "2512.22219" in cite("waits") and "2604.13327" in cite("waits") and cite("waits", "handoff") == cite("waits")
