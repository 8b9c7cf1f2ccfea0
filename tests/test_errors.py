"""Errors of other packages in one line."""

from __future__ import annotations

from vp3d.errors import in_one_line


def test_a_message_of_many_lines_is_one_line() -> None:
    assert in_one_line(ValueError(" two\n\tlines \r\n and a bit")) == "two lines and a bit"


def test_a_long_message_is_cut() -> None:
    assert in_one_line(ValueError("abc" * 200)) == "abc" * 100
    assert in_one_line(ValueError("abcdef"), most=4) == "abcd"


def test_an_error_without_a_message_gives_its_type() -> None:
    assert in_one_line(ValueError("\n")) == "ValueError"
