"""The glossary in every form, and the checks of exercises."""

import pytest

import mpklab as mk


def test_words_are_found_alone_and_in_pairs(tmp_path):
    words = mk.glossary()
    assert words["ring"] == words["page, ring"] == words["page"]
    assert words["need"].startswith("how many signals")
    with pytest.raises(mk.MpkError, match="did you mean 'task'"):
        words["taks"]
    text, page = repr(words), words.to_html(tmp_path / "words.html").read_text()
    for word, meaning in words.words.items():
        assert f"{word}  " in text and meaning in text
    assert page.count("<tr>") == len(words) == 17 and "<script" not in page and "http" not in page


def test_glossary_is_a_copy():
    mk.glossary().words.clear()
    assert len(mk.glossary()) > 10


@pytest.mark.parametrize(
    ("given", "right", "options", "said"),
    [
        (..., 3, {}, "not answered yet"),
        ("a", "a", {}, "right"),
        ("b", "a", {}, "no, not 'b': look again"),
        (3, 3.0, {}, "right"),
        (2.9, 3.0, {}, "no, not 2.9: look again"),
        (2.9, 3.0, {"within": 0.05}, "right"),
        (None, 3.0, {"hint": "count the edges"}, "no, not None: count the edges"),
        (7, lambda n: n > 5, {}, "right"),
        ({"a", "b"}, {"b", "a"}, {}, "right"),
        ("3", "4", {}, "no, not '3': look again"),
    ],
)
def test_answers(capsys, given, right, options, said):
    mk.check(given, right, **options)
    assert capsys.readouterr().out == said + "\n"
