"""The commented site file that `callosum-site init` writes."""

from __future__ import annotations

from typing import Final

from common.errors import SettingError
from common.study import check_name

_DATA: Final = {
    "t1w": """[data]
kind = "t1w"
root = "bids"                  # BIDS folder, relative to this file
# derivative = "derivatives/fmriprep"        # read preprocessed scans from there
# rows = {{site = "our-hospital"}}             # only these rows of participants.tsv
# regions = "derivatives/regions.tsv"        # regional volumes for the linear rival
""",
    "features": """[data]
kind = "features"
table = "features.csv"         # CSV or TSV, gzip allowed, relative to this file
participant = "participant_id"
# rows = {{site = "our-hospital"}}             # only these rows
# rename = {{"Left-Hippocampus" = "lh_hippo"}} # study column = your column
""",
}
_REST: Final = """# {name}: our own file; it never leaves this site. Check it: callosum-site check
# Every key and its default: callosum-site keys
name = "{name}"
role = "train"                 # "heldout": this site only judges
folder = ".callosum"           # prepared data and cached reports

{data}
# Our columns and codes in the study's words.
[targets.age]
column = "age"

[targets.sex]
column = "sex"
codes = {{F = "female", M = "male"}}
missing = ["n/a", "-9999", ""]

[device]
kind = "auto"                  # "cpu", "cuda"
threads = 0                    # 0: all cores

[policy]                       # may only tighten what a study asks
minimum_cohort = 10            # fewest participants for us to take part
minimum_support = 10           # fewest participants behind any number that leaves
orders = ["census", "train", "finetune", "evaluate"]
most_exposures = 0             # most training orders over all studies and runs; 0: no limit
largest_report_mb = 1000.0     # largest report that leaves
largest_update_norm = 0.0      # longest update that leaves; 0: no limit
# hours = ["Mon-Fri 19:00-07:00", "Sat,Sun 00:00-24:00"]       # local time; without: always
"""


def site_template(name: str, kind: str) -> str:
    """The text of a new site file.

    Raises
    ------
    SettingError
        If there is no template for `kind`, or no site may have that name.
    """
    check_name(name)
    if kind not in _DATA:
        raise SettingError(f'kind is "{kind}"; there are templates for {", ".join(_DATA)}')
    return _REST.format(name=name, data=_DATA[kind].format())
