"""The commented site file that `callosum-site init` writes."""

from __future__ import annotations

from typing import Any, Final

from common import catalogue
from common.examples import example, toml
from common.study import check_name

_REST: Final = """# {name}: our own file; it never leaves this site. Check it: callosum-site check
# Every key and its default: callosum-site keys
name = "{name}"
role = "train"                 # "heldout": this site only judges
folder = ".callosum"           # prepared data and cached reports

{data}
# Our columns and codes in the study's words.
{targets}
[device]
kind = "auto"                  # "cpu", "cuda"
threads = 0                    # 0: all cores

[policy]                       # may only tighten what a study asks
minimum_cohort = 10            # fewest participants for us to take part
minimum_support = 10           # fewest participants behind any number that leaves
# kinds of order we carry out; "explain" and "send" let maps and tuned models out,
# "cross" judges heads that others tuned
orders = ["census", "overlap", "settle", "train", "finetune", "protocol", "judge", "evaluate"]
most_exposures = 0             # most training orders over all studies and runs; 0: no limit
epsilon = 0.0                  # most that private rounds may cost a participant, ever; 0: no limit
largest_report_mb = 1000.0     # largest report that leaves
largest_update_norm = 0.0      # longest update that leaves; 0: no limit
# hours = ["Mon-Fri 19:00-07:00", "Sat,Sun 00:00-24:00"]       # local time; without: always
"""

_TARGETS: Final = """[targets.age]
column = "age"

[targets.sex]
column = "sex"
codes = {F = "female", M = "male"}
missing = ["n/a", "-9999", ""]
"""


def site_template(name: str, kind: str) -> str:
    """The text of a new site file, for any data kind that is installed.

    Raises
    ------
    SettingError
        If no such kind is installed, or no site may have that name.
    """
    check_name(name)
    found = catalogue.load("kinds", kind)
    data = example(found.Site, "data", kind=kind)
    return _REST.format(name=name, data=data, targets=columns_of(found) or _TARGETS)


def columns_of(kind: Any) -> str:
    """The tables of the targets that a kind comes with, as a site file has them; "" without any.

    >>> from common.kinds.synthetic_video import SyntheticVideo
    >>> print(columns_of(SyntheticVideo), end="")
    [targets.motion]
    column = "motion"
    """
    columns = getattr(kind, "columns", {})
    tables = (
        f"[targets.{name}]\ncolumn = {toml(columns.get(name, name))}\n"
        for name in getattr(kind, "targets", {})
    )
    return "\n".join(tables)
