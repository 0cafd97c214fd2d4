"""`fedge docs`: the documents, as text on a terminal."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

import click

from fedge.console import command_errors
from fedge.errors import ConfigError, did_you_mean
from fedge.handbook.shipped import shipped

_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)\n*")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]*)\)")
_CODE = re.compile(r"(^ {0,3}```.*?^ {0,3}```$)", re.DOTALL | re.MULTILINE)
#: Of a decision the number, too.
_TITLE = re.compile(r"^# +([0-9]+\. +)?")
_HEADING = re.compile(r"^(#+) +(.*)$")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_LONGEST_SUMMARY = 90
#: Beginnings of headings, pictures, tables, code and lists; and of decisions.
_NOT_PROSE = ("#", "!", "|", "<", "```", " ", "- ", "Status:")
#: Blocks before the sentence that is shown in the list.
_LATEST_SUMMARY = 3


def topics() -> dict[str, Path]:
    """Returns the pages by topic: `security`, `decisions/0001-seams`."""
    folder = shipped("docs")
    pages = sorted(folder.rglob("*.md"), key=lambda page: (len(page.parts), page))
    return {page.relative_to(folder).with_suffix("").as_posix(): page for page in pages}


def summary(text: str) -> str:
    """Returns the first sentence below a page's title; its title when there is none."""
    blocks = [block for block in text.split("\n\n") if block.strip()]
    prose = [b for b in blocks if not b.startswith(_NOT_PROSE)]
    found = prose[0] if prose and blocks.index(prose[0]) <= _LATEST_SUMMARY else blocks[0]
    plain = _LINK.sub(r"\1", " ".join(_TITLE.sub("", found).split()))
    sentence = re.split(r"(?<=[.]) ", plain)[0].rstrip(".:")
    sentence = sentence[:1].upper() + sentence[1:]
    if len(sentence) <= _LONGEST_SUMMARY:
        return sentence
    return sentence[:_LONGEST_SUMMARY].rsplit(" ", 1)[0] + " ..."


def as_text(markdown: str, topic: str = "") -> str:
    """Returns a page for a terminal: no pictures, and no link but those that lead somewhere.

    A link to another page becomes the command that shows it, a link to the web its address.

    Args:
        markdown: the page, or a part of it.
        topic: of the page, which its links are relative to.
    """
    folder = topic.rpartition("/")[0]
    parts = _CODE.split(_IMAGE.sub("", markdown))  # every second is code
    parts[::2] = [_LINK.sub(lambda link: _reference(link, folder), part) for part in parts[::2]]
    return "".join(parts)


def _reference(link: re.Match[str], folder: str) -> str:
    words, target = link[1], link[2]
    if target.startswith(("http://", "https://")):
        return words if words in target else f"{words} ({target})"
    page, _, anchor = target.partition("#")
    page = posixpath.normpath(posixpath.join(folder, page))
    if page.startswith("../") or not page.endswith(".md"):
        return words  # within the page, or a file of the source
    command = f"fedge docs {page.removesuffix('.md')}" + (f" {anchor}" if anchor else "")
    return f"{words} (`{command}`)"


def anchor(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading."""
    words = re.sub(r"[^\w\s-]", "", _LINK.sub(r"\1", heading).lower())
    return words.strip().replace(" ", "-")


def section(markdown: str, wanted: str) -> str | None:
    """Returns the first section whose heading contains the words `wanted`, with what is below it.

    Anchors count as well. None: there is no such section.
    """
    key = anchor(wanted)
    lines, level, is_code = [], 0, False
    for line in markdown.splitlines():
        is_code ^= bool(_FENCE.match(line))
        heading = None if is_code else _HEADING.match(line)
        if heading and level and len(heading[1]) <= level:
            break
        if heading and not level and key in anchor(heading[2]):
            level = len(heading[1])
        if level:
            lines.append(line)
    return "\n".join(lines) + "\n" if lines else None


@click.command()
@click.argument("topic", required=False)
@click.argument("words", required=False, metavar="[SECTION]")
@command_errors
def cli(topic: str | None, words: str | None) -> None:
    """Show a page of the documentation; without TOPIC, list the pages.

    SECTION is a word of a heading: `fedge docs configuration limits`. On a terminal the page is
    shown in a pager (PAGER).
    """
    pages = topics()
    if topic is None:
        _print_topics(pages)
        return
    name = topic.removeprefix("docs/").removesuffix(".md")
    found = [known for known in pages if name in (known, known.rpartition("/")[2])]
    if not found:
        hint = did_you_mean(name, list(pages))
        raise ConfigError(f"no page {topic[:80]!r}: {hint}`fedge docs` lists the pages")
    text = pages[found[0]].read_text(encoding="utf-8")
    if words is not None:
        text = _section_of(text, found[0], words)
    shown = as_text(text, found[0])
    if sys.stdout.isatty():
        click.echo_via_pager(shown)
    else:
        click.echo(shown, nl=False)


def _print_topics(pages: dict[str, Path]) -> None:
    width = max(map(len, pages))
    for name, page in pages.items():
        click.echo(f"{name:{width}}  {summary(page.read_text(encoding='utf-8'))}")
    click.echo("\n`fedge docs TOPIC` shows a page, `fedge docs TOPIC SECTION` a part of it.")


def _section_of(text: str, topic: str, words: str) -> str:
    part = section(text, words)
    if part is None:
        headings = [h[2] for line in text.splitlines() if (h := _HEADING.match(line))]
        raise ConfigError(
            f"no section {words[:80]!r} in {topic}; its sections: {', '.join(headings)}"
        )
    return part
