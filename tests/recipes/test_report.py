import re

import pytest

from thawkit.recipes.demo.report import render, verdict

from .pages import Page, outside_addresses, plain

SECTIONS = ["xrays", "freezing", "digits", "device", "times", "again", "sources"]


def test_the_page_is_whole_and_loads_nothing(result):
    text = render(result)
    page = Page(text)
    assert page.open == []
    assert page.sections == SECTIONS
    assert outside_addresses(text) == []
    assert "<script" not in text
    assert not re.search(r"\{\{|\[\[|\}\}|\]\]", text)


def test_every_chart_has_words_for_those_who_cannot_see_it(result):
    text = render(result)
    assert text.count("<svg") == 5
    assert text.count("<title>") == 6
    assert text.count("<desc>") == text.count('role="img"') == text.count("<svg")
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", text))


def test_the_page_says_what_it_is_made_from_and_what_it_is_not_for(result):
    text = plain(render(result))
    for words in (
        "Not for clinical use",
        "CC BY 4.0",
        "CC BY-SA 3.0",
        "Apache-2.0",
        "Kermany",
        "thawkit train",
    ):
        assert words in text


def test_names_from_outside_are_escaped(result):
    result["xray"]["data"]["classes"] = ["<i>normal", "pneumonia"]
    text = render(result)
    assert "a &lt;folder&gt;" in text
    assert "&lt;i&gt;normal" in text
    assert "<i>normal" not in text
    assert Page(text).open == []


@pytest.mark.parametrize(
    ("quick", "passed", "style", "word"),
    [
        (False, (True, True, True), "good", "All 3 checks passed"),
        (False, (True, False, True), "bad", "Failed: Second"),
        (True, (False, False, True), "quick", "Quick form"),
        (True, (True, True, False), "bad", "Failed: Third"),
    ],
)
def test_the_verdict_follows_the_checks(result, quick, passed, style, word):
    result["quick"] = quick
    for check, kept in zip(result["checks"], passed, strict=True):
        check["passed"] = kept
    line, found = verdict(result)
    assert (found, line.startswith(word)) == (style, True)
    text = render(result)
    assert f'class="verdict {style}"' in text
    marks = re.findall(r'<li><i class="mark (\w+)">', text)
    judged = ["right" if kept else "wrong" for kept in passed]
    assert marks == (["open", "open", judged[2]] if quick else judged)


def test_no_mistakes_and_no_history_still_make_a_page(result):
    result["xray"]["samples"]["mistakes"] = []
    result["xray"]["history"] = []
    text = render(result)
    assert "<p>None.</p>" in text
    assert text.count("nothing to show") == 2
