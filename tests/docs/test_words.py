"""Words that hide the meaning of a sentence do not come back into code, documents or messages.

Each entry of WORDS is a word or phrase and what to write instead. Inline code in Markdown and the
test functions themselves are not read; helper modules of the tests are.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

WORDS = {
    "told": "reported, printed, logged, given or passed",
    "tells": "says, reports, shows or prints",
    "untold": "not given or unconditioned",
    "anew": "again, or re-: re-export, retrain, re-initialise",
    "gone on with": "resumed or continued",
    "go on with": "resume or continue",
    "goes on with": "resumes or continues",
    "going on with": "resuming or continuing",
    "heed": "respect or follow",
    "heeds": "respects or follows",
    "heeded": "respected or followed",
    "as ever": "as before, or leave it out",
    "for want of": "because ... is missing",
    "stands there": "is there or exists",
    "stand there": "are there or exist",
    "lies there": "is in the folder or exists",
    "lie there": "are in the folder or exist",
    "that lies": "that is",
    "stand in the": "are in the",
    "stands in the": "is in the",
    "stand beside": "are next to, or coexist with",
    "stands beside": "is next to, or coexists with",
    "begun": "started",
    "passed over": "skipped",
    "in the place of": "instead of",
    "makes nothing of": "does not work with",
    "hang on": "depend on",
    "hangs on": "depends on",
    "in the midst": "during, or between",
    "broke off": "was interrupted",
    "unless said": "by default, or: unless stated",
    "kinder": "more lenient",
    "melts": "loses its shape",
    "what pleases": "what scores well with",
    "unchosen": "not selected",
    "rightly": "correctly",
    "smoke suite": "gallery suite (a smoke test checks only that the program runs)",
    "hindered": "ResourceError, or: stopped by a lack of memory or disk space",
    "told_out_of_memory": "report_out_of_memory",
}
INLINE_CODE = re.compile(r"`[^`\n]+`")


def pattern_of(words: str) -> re.Pattern[str]:
    """The phrase as a word of its own, also inside snake_case and over a line break."""
    phrase = r"[\s_]+".join(re.escape(word) for word in words.split())
    return re.compile(rf"(?<![A-Za-z]){phrase}(?![A-Za-z])", re.IGNORECASE)


PATTERNS = {words: pattern_of(words) for words in WORDS}


def texts() -> list[Path]:
    """Every file that a reader may meet."""
    found = [ROOT / "launch.py", ROOT / "Makefile", ROOT / "mkdocs.yml"]
    found += ROOT.glob("*.md")
    for folder, kinds in (
        ("vp3d", ("py", "md")),
        ("benchmarks", ("py",)),
        ("examples", ("py", "ipynb", "md")),
        ("configs", ("yaml",)),
        ("docs", ("md", "py")),
        ("integrations", ("py", "md", "yaml")),
    ):
        for kind in kinds:
            found += (ROOT / folder).rglob(f"*.{kind}")
    helpers = (ROOT / "tests").rglob("*.py")
    found += [path for path in helpers if not path.name.startswith("test_")]
    return sorted(path for path in found if path.is_file())


def faults(text: str, markdown: bool = False) -> list[tuple[int, str]]:
    """Line number and phrase of each banned phrase in the text."""
    if markdown:
        text = INLINE_CODE.sub(lambda code: " " * len(code.group()), text)
    found = [
        (text.count("\n", 0, match.start()) + 1, words)
        for words, pattern in PATTERNS.items()
        for match in pattern.finditer(text)
    ]
    return sorted(found)


def test_no_banned_words():
    """The message names each place and what to write instead."""
    lines = [
        f"{path.relative_to(ROOT)}:{line}: '{words}' -> {WORDS[words]}"
        for path in texts()
        for line, words in faults(path.read_text(encoding="utf-8"), path.suffix == ".md")
    ]
    assert not lines, "\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "markdown", "expected"),
    [
        ("the file tells it", False, [(1, "tells")]),
        ("def is_told():", False, [(1, "told")]),
        ("one\nis gone on\nwith here", False, [(2, "gone on with")]),
        ("`told` is a name", True, []),
        ("`told` is a name", False, [(1, "told")]),
        ("untold and atoll, retells", False, [(1, "untold")]),
    ],
)
def test_what_is_found(text, markdown, expected):
    assert faults(text, markdown) == expected
