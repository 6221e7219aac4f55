"""Control characters of names in files reach neither the terminal nor the log."""

import io
import logging
import sys
from pathlib import Path

import pytest

from trunkline import cli
from trunkline.data.shared.common import listing
from trunkline.data.shared.terminal import guard_log, harmless, one_line, show_error

EVIL = {
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",  # clears the screen and sets the title
    "\x1b]52;c;cm0=\x07": r"\x1b]52;c;cm0=\x07",  # writes into the clipboard
    "cat\rdog": r"cat\x0ddog",
    "a\x08\x08b\x7f": r"a\x08\x08b\x7f",
    "\x9b31m": r"\x9b31m",  # the escape of C1, in one letter
    "gnp.\u202eexe": r"gnp.\u202eexe",
    "\u2066a\u2069\u200e\u061c": r"\u2066a\u2069\u200e\u061c",
    "a\u2028b": r"a\u2028b",
    "\ud83d": r"\ud83d",
    "\U000e0041": r"\U000e0041",
}


@pytest.mark.parametrize("text", EVIL)
def test_control_characters_are_written_out(text):
    assert harmless(text) == EVIL[text] and harmless(text).isprintable()
    assert harmless(harmless(text)) == harmless(text)


@pytest.mark.parametrize("text", ["", "two\n\tlines", "é ß 猫 قطة 🐈‍⬛ می‌خواهم", "C:\\x1b"])
def test_other_text_stays(text):
    assert harmless(text) == text


def test_the_log_shows_them_whoever_handles_it():
    guard_log(), guard_log()
    logger, stream = logging.getLogger("trunkline"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        logger.warning("%s: %d images of \x1b[31m", Path("a\x1b[2J\nINFO: all is well"), 3)
        logger.warning("100 % \u202e")
        logger.warning("two\nlines")
    finally:
        logger.removeHandler(handler)
    said = "a\\x1b[2J\\nINFO: all is well: 3 images of \\x1b[31m\n100 % \\u202e\ntwo\nlines\n"
    assert stream.getvalue() == said


def test_a_list_of_problems_has_one_line_for_each():
    assert listing(["a\n  b: fine", "\x1b[1A"]) == "  a\\n  b: fine\n  \\x1b[1A"
    assert one_line("a\tb") == "a\tb"


def test_messages_and_tracebacks_of_the_command_show_them(monkeypatch, capsys):
    def stop(words):
        sys.exit("trunkline: error: \x1b[2J")

    monkeypatch.setattr(cli, "_main", stop)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit"])
    assert stopped.value.code == r"trunkline: error: \x1b[2J"

    def fail(words):
        raise KeyError("\x1b\u202e\n")

    monkeypatch.setattr(cli, "_main", fail)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(KeyError) as failed:
        cli.main(["fit"])
    assert sys.excepthook is show_error
    sys.excepthook(RuntimeError, RuntimeError("\x1b[2J"), failed.value.__traceback__)
    assert "\x1b" not in (said := capsys.readouterr().err) and r"RuntimeError: \x1b[2J" in said
