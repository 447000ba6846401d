"""Reading a report back."""

import re
from html import unescape
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}
LOADING = {"src", "srcset", "data", "poster", "background", "action", "xlink:href"}


class Page(HTMLParser):
    """Section ids, addresses a browser would load, and the text of every element with a ``data-key``."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.loads, self.numbers, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "section":
            self.sections.append(found.get("id"))
        self.loads += [value for name, value in found.items() if name in LOADING]
        if tag == "link":
            self.loads.append(found.get("href"))
        if "data-key" in found:
            self.numbers.append([found["data-key"], found["data-as"], ""])
        if tag not in VOID:
            self.open.append((tag, "data-key" in found))

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1][1]:
            self.numbers[-1][2] += data


def outside_addresses(text):
    """What the page would fetch: sources and style sheets that are not ``data:``."""
    page = Page(text)
    styles = re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", text)
    return [a for a in page.loads if not (a or "").startswith("data:")] + styles


def plain(text):
    """The text without tags, white space squeezed."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())
