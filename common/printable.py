"""Text from others as it may stand on a screen, in a log or in a CSV cell: as data, never as order.

A terminal obeys escape codes, a line that holds a line break is two, characters that turn the
direction of writing make a text read as another, and a spreadsheet runs what begins with an equals
sign. Letters, accents, ideographs and emoji pass as they are.
"""

from __future__ import annotations

import unicodedata
from typing import Final

# control, formatting (which turns the direction of writing), half characters, line and paragraph
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS: Final = "\u200c\u200d"  # of the formatting characters those that words and emoji need
_FORMULA: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are the wide ones
_QUOTE: Final = "'"  # what spreadsheets themselves put before a text that is no formula
_MOST: Final = 4_000  # characters of one text in one line of a log


def printable(text: object, *, lines: bool = False, most: int | None = None) -> str:
    r"""`text` with every character that a screen would obey written as its code.

    Parameters
    ----------
    lines : whether line breaks are ours and stay
    most : how many characters are shown; what is left out is counted

    >>> printable("Größe \x1b[8m 年龄 👩‍⚕️"), printable("a\nb"), printable("a\nb", lines=True)
    ('Größe \\x1b[8m 年龄 👩‍⚕️', 'a\\nb', 'a\nb')
    >>> printable("abcdef", most=4)
    'abcd... and 2 more characters'
    """
    whole = str(text)
    shown = whole if most is None or len(whole) <= most else whole[:most]
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(
            one if (lines and one == "\n") or is_printable(one) else _code(one) for one in shown
        )
    left = 0 if most is None else len(whole) - most
    return shown + (f"... and {left} more characters" if left > 0 else "")


def in_log(text: object) -> str:
    """The same for a line of a log, which nobody may forge or fill."""
    return printable(text, most=_MOST)


def is_printable(text: str) -> bool:
    r"""Whether all of `text` may be shown as it is.

    >>> is_printable("Zürich 苏黎世"), is_printable("\u202egnp.exe"), is_printable("two\tcells")
    (True, False, False)
    """
    return text.isprintable() or not any(
        unicodedata.category(one) in _HIDDEN and one not in _JOINERS for one in text
    )


def name_as_text(name: str) -> str:
    r"""A name from the file system as text for any file or screen, told apart from every other.

    Bytes that are no UTF-8, as old Windows shares leave them, are written as their codes; that is
    why a backslash is doubled.

    >>> name_as_text("Universit\udce4t"), name_as_text("Universität"), name_as_text(r"\xe4")
    ('Universit\\xe4t', 'Universität', '\\\\xe4')
    """
    doubled = name.replace("\\", "\\\\")
    return doubled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def csv_cell(text: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula; `csv_text` gives it back.

    >>> csv_cell("=HYPERLINK(1)"), csv_cell("'=1"), csv_cell("mae"), csv_cell("it's")
    ("'=HYPERLINK(1)", "''=1", 'mae', "it's")
    """
    # escaped line breaks first: a cell is one line of the file, whoever reads it
    shown = printable(text)
    return _QUOTE + shown if shown.lstrip(_QUOTE).startswith(_FORMULA) else shown


def csv_text(cell: str) -> str:
    """The text that `csv_cell` made a cell of, as far as it was printable.

    >>> csv_text("'=HYPERLINK(1)"), csv_text("''=1"), csv_text("'quoted'"), csv_text("-1")
    ('=HYPERLINK(1)', "'=1", "'quoted'", '-1')
    """
    if cell.startswith(_QUOTE) and cell.lstrip(_QUOTE).startswith(_FORMULA):
        return cell[1:]
    return cell


def _code(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
