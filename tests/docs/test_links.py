"""Links and lines of the Markdown files that are not part of the documentation site.

`mkdocs build --strict` checks the pages of docs/. This checks README and the other files at the
root, and of integrations/.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 100
README_LINES = 200
FILES = sorted([*ROOT.glob("*.md"), *(ROOT / "integrations").rglob("*.md")])

FENCE = re.compile(r"^(```|~~~).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
PICTURE = re.compile(r"!\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
HTML_PICTURE = re.compile(r"""<(?:img|source)\b[^>]*?\bsrc(?:set)?=["']([^"']+)""")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def prose(text: str) -> str:
    """The text without code blocks and inline code; as many lines as before."""
    text = FENCE.sub(lambda match: "\n" * match.group().count("\n"), text)
    return INLINE_CODE.sub("", text)


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as a code host names them: "How it works" is how-it-works."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def links(text: str) -> list[str]:
    """The targets of all links and pictures."""
    text = INLINE_CODE.sub("code", FENCE.sub("", text))
    return [link for kind in (LINK, PICTURE, HTML_PICTURE) for link in kind.findall(text)]


def broken(path: Path) -> list[str]:
    """The relative links of a Markdown file whose file or heading does not exist."""
    wrong = []
    for link in links(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists():
            wrong.append(f"{link}: no such file")
            continue
        known = anchors(target.read_text(encoding="utf-8")) if target.suffix == ".md" else {anchor}
        if anchor and anchor not in known:
            wrong.append(f"{link}: no such heading")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_exist(path):
    assert broken(path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_not_too_long(path):
    """Tables and lines that are one long address are exempt."""
    lines = path.read_text(encoding="utf-8").splitlines()
    wrong = [
        f"{number}: {len(line)} columns"
        for number, line in enumerate(lines, 1)
        if len(line) > WIDTH and not line.lstrip().startswith("|") and "://" not in line
    ]
    assert wrong == []


def test_lines_of_the_pages_are_not_too_long():
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "docs").rglob("*.md"))
        for number, line in enumerate(prose(path.read_text(encoding="utf-8")).splitlines(), 1)
        if len(line) > WIDTH and not line.lstrip().startswith("|") and "://" not in line
    ]
    assert wrong == []


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES


def test_what_is_found(tmp_path):
    """A missing file, a missing heading, a heading twice; code and other hosts are left alone."""
    (tmp_path / "there.md").write_text("# One `thing`, two\n\n## Again\n\n## Again\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n"
        "[a](there.md) [b](there.md#one-thing-two) [c](there.md#again-1) [d](#title)\n"
        "[e](https://example.org/x) `[f](gone.md)` [![g](gone.png)](there.md#nothing)\n"
        "```\n[h](gone.md)\n```\n"
    )
    assert sorted(broken(page)) == ["gone.png: no such file", "there.md#nothing: no such heading"]
