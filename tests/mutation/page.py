"""The page `docs/results/mutants.md` from what has run: `python -m tests.mutation.page`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

from scipy.stats import binomtest

from tests.mutation.run import (
    GROUPS,
    RESULTS,
    ROOT,
    TIMEOUT_FACTOR,
    all_mutants,
    is_valid,
    key_of,
    read_reasons,
    read_results,
)
from vp3d.system.files import write_text

PAGE = ROOT / "docs" / "results" / "mutants.md"
KNOWN_BEFORE = "export, rewards, perp_neg, guidance, schedule and train"
PARTS = ("resize", "watchdog", "loop")  # groups that are part of another one
HEAD = """# Mutation run: do the tests notice a changed line?

    make mutants
    make mutants ARGS="guidance --sample 40 --minutes 30"
    .venv/bin/python -m tests.mutation.page  # writes this page

Each mutant changes one constant, comparison, operator or call of the package; the tests of its
group run until the first failure. A mutant that no test notices survives. The run is resumable.
The order is drawn from `--seed` (0); `--sample N` takes the first N of a group. {date}.

{state}

| group | mutants | run | killed at first | killed now | share now (95 %, Wilson) |
|---|--:|--:|--:|--:|---|
"""
TAIL = """
"At first" is before tests were written for the survivors. It is what to expect of the mutants that
have not run, but for janus, whose tests by hand were written before most of its mutants were drawn,
and for {known}, where tests for drawn
mutants were written before these ran: there it is too high.
An interval is for the mutants that could be drawn: where few files of a group were run (below), it
says nothing of the group's other files. A mutant whose tests take over {factor:.0f} times their
processor time counts as killed.

| file | mutants | run | killed now |
|---|--:|--:|--:|
"""


def page() -> str:
    """The page in Markdown."""
    newest, first, reasons = read_results(), first_outcomes(), read_reasons()
    groups, files = "", ""
    survivors: dict[str, bool] = {}
    missing: list[str] = []
    for name in [name for name in GROUPS if name not in PARTS]:
        keys = [(found[0], key_of(*found)) for found in all_mutants(GROUPS[name])]
        run = [(path, key) for path, key in keys if key in newest]
        killed = [(path, key) for path, key in run if newest[key]["outcome"] != "survived"]
        at_first = sum(first[key] != "survived" for _, key in run)
        groups += row(
            name, len(keys), len(run), at_first, len(killed), share(len(killed), len(run))
        )
        counts = [Counter(path for path, _ in rows) for rows in (keys, run, killed)]
        for path in counts[1]:
            files += row(f"`{path}`", *(count[path] for count in counts))
        for _, key in run:
            if newest[key]["outcome"] == "survived":
                survivors[key] = is_valid(newest[key], GROUPS[newest[key]["group"]])
        if len(run) < len(keys):
            missing.append(f"{name} ({len(keys) - len(run)})")
    state = "Every mutant was run."
    if missing:
        state = "**The run is not complete.** Not run: " + ", ".join(missing) + "."
    head = HEAD.format(date=time.strftime("%Y-%m-%d"), state=wrap(state))
    tail = TAIL.format(factor=TIMEOUT_FACTOR, known=KNOWN_BEFORE)
    return head + groups + tail + files + survivor_list(survivors, reasons)


def survivor_list(survivors: dict[str, bool], reasons: dict[str, str]) -> str:
    """The survivors without a reason: those of tests that have changed since, and the others."""
    known = sum(key in reasons for key in survivors)
    text = wrap(
        f"{known} survivors change nothing that matters; `tests/mutation/survivors.md` has the "
        "reason of each."
    )
    for valid, words in (
        (False, "ran before the tests of their group changed, and not again"),
        (True, "are noticed by no test"),
    ):
        keys = [key for key, is_new in survivors.items() if key not in reasons and is_new == valid]
        text += f"\n\n{len(keys)} {words}" + (":\n" if keys else ".")
        text += "".join(f"\n    {line}" for key in keys for line in parts(key))
    return f"\n## Survivors\n\n{text}\n"


def parts(key: str) -> list[str]:
    """A survivor's key in lines of at most 90 columns."""
    path, line, change = key.split(" | ")
    lines = [f"{path}: {change.replace('`', '')}", f"    {line.strip('`')}"]
    return [line[:90] for line in lines]


def first_outcomes() -> dict[str, str]:
    """The oldest outcome of each mutant."""
    found: dict[str, str] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        found.setdefault(entry["key"], entry["outcome"])
    return found


def share(killed: int, run: int) -> str:
    """ "90 % (77 to 96)"."""
    if run == 0:
        return ""
    limits = binomtest(killed, run).proportion_ci(0.95, method="wilson")
    return f"{100 * killed / run:.0f} % ({100 * limits.low:.0f} to {100 * limits.high:.0f})"


def row(*cells: object) -> str:
    """A row of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def wrap(text: str, width: int = 100) -> str:
    """The text in lines of at most `width` columns."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def main() -> int:
    """Writes the page."""
    write_text(PAGE, page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
