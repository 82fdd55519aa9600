"""Everything that can go wrong, as one tree with documented exit codes and site codes.

CallosumError                 exit 1    anything below; the message is for people
├── SettingError              exit 3    a study, site or command-line value is missing or wrong
├── DataError                 exit 4    a site's scans, tables or labels cannot be used
│   └── ScanError                       one scan cannot be used; the others go on
├── FolderError               exit 5    a run, site or output folder belongs to something else
│   ├── RunBusyError                    another process is working in it; the same call later works
│   └── DamagedError                    a file of ours is no longer what was written
├── QuorumError               exit 6    too few sites answered a round
├── StorageError              exit 7    the disk is full or cannot be written
├── LineageError              exit 8    a site took part in what it should judge
└── Refusal                   (a code)  a site or the coordinator declines one order or one report

Two faces: a message may name paths and is for the log of whoever owns them; what crosses between
sites is only a `Refusal`'s code and the fixed sentence that `SENTENCES` holds for it.
"""

from __future__ import annotations

from typing import Final


class CallosumError(Exception):
    """Base of all errors that Callosum raises on purpose."""

    exit_code: int = 1


class SettingError(CallosumError):
    """A value in a study file, site file or on the command line is missing, unknown or wrong."""

    exit_code = 3


class DataError(CallosumError):
    """A site's scans, tables or labels cannot be used."""

    exit_code = 4


class ScanError(DataError):
    """One scan cannot be used; it is named in the site's log and left out."""


class FolderError(CallosumError):
    """A folder holds something else than what was expected, or another version of it."""

    exit_code = 5


class RunBusyError(FolderError):
    """Another process holds the folder; trying later is all that it takes."""


class DamagedError(FolderError):
    """A file of ours is no longer what was written: a disk that rots, or somebody's hand."""


class QuorumError(CallosumError):
    """Fewer sites gave a usable answer than the study's quorum."""

    exit_code = 6


class StorageError(CallosumError):
    """The disk is full, or a file cannot be written."""

    exit_code = 7


class LineageError(CallosumError):
    """A site contributed to a backbone that it is asked to judge, or the other way round."""

    exit_code = 8


def reason(error: OSError) -> str:
    """What the operating system says, without number and path.

    >>> reason(PermissionError(13, "Permission denied", "/data/sub-01"))
    'Permission denied'
    """
    return error.strerror or str(error) or type(error).__name__


INTERRUPTED: Final = 130  # as shells report SIGINT; the same command resumes

SENTENCES: Final[dict[str, str]] = {
    # refused by a site, in the order of its checks
    "UNSIGNED": "The order carries no signature.",
    "SIGNATURE": "The order's signature is not by a key that this site trusts.",
    "EXPIRED": "The order's time is over or has not begun; one of the two clocks may be wrong.",
    "REPLAYED": "This very order was delivered and answered before.",
    "STUDY_UNKNOWN": "The order names a study that this site has not approved.",
    "CODE": "The coordinator's software differs from this site's in what both must share.",
    "ROLE": "The order asks a held-out site to contribute, or a training site to judge.",
    "POLICY": "The site's policy does not allow this kind of order.",
    "PAUSED": "The site has paused all work.",
    "HOURS": "The site works for studies at other hours.",
    "REPORT_TOO_LARGE": "The report would be larger than the site's policy lets out.",
    "COHORT_TOO_SMALL": "Fewer participants are usable than the site's policy requires.",
    "BOOKS": "The site's books are not those that the coordinator last saw; a person must decide.",
    "PRIVACY_SPENT": "The site's limit for learning from its participants, or judging, is reached.",
    "BUSY": "The site has as many orders waiting as it takes.",
    "GUESSABLE": "The site's scans hold so few numbers that tokens of them could be guessed.",
    "NO_DATA": "The site has no usable data for this order.",
    "NEEDS_ARRAYS": "The site does not hold arrays that the order names without sending them.",
    "ORDER_MALFORMED": "The order does not have the form that this site understands.",
    "PEERS": "The sites, or their keys, are not those that this site adds up with in secret.",
    "TOO_FEW_SITES": "Fewer sites would be added up than the study's threshold for secure sums.",
    "SUMS_DECIDED": "The site has done its part in this secure sum, for another purpose.",
    "UPDATE_TOO_LARGE": "The update holds a number beyond the study's limit for secure sums.",
    "BUDGET_EXHAUSTED": "The privacy that study or site let each participant spend is used up.",
    "SITE_FAILED": "The site could not carry out the order; its own log says why.",
    "DISK_FULL": "The site's disk is full; its own log says where.",
    "EGRESS": "The site's egress gate held the report back; its own log says why.",
    # refused by the coordinator
    "STRANGER": "The report comes from a site that was not asked.",
    "STALE": "The report answers another order or round.",
    "DUPLICATE": "The site has answered this order already.",
    "REPORT_MALFORMED": "The report does not have the agreed form.",
    "ARRAYS_MISNAMED": "The arrays are not the ones asked for.",
    "ARRAYS_MISSHAPEN": "An array has another shape than asked for.",
    "ARRAYS_MISTYPED": "An array has another type than asked for.",
    "NOT_FINITE": "An array or number is infinite or not a number.",
    "SUPPORT": "A count of scans or labels is negative, missing or not a whole number.",
    "UPDATE_TOO_LONG": "The arrays moved much further than those of other sites, or than is safe.",
    "NO_ANSWER": "The site did not answer within the time limit.",
    "TRANSPORT": "The message could not be delivered or answered.",
    "NO_AGENT": "The site's courier cannot reach the site's agent.",
}


class Refusal(CallosumError):  # noqa: N818  it is an answer, not a fault
    """One order or report is declined, with a code from `SENTENCES`.

    `detail` stays with whoever raised it (it may name paths); only code and sentence travel.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        self.code = code
        self.sentence = SENTENCES[code]
        self.detail = detail
        super().__init__(f"{code}: {detail or self.sentence}")

    def __reduce__(self) -> tuple[type[Refusal], tuple[str, str]]:
        """What another process makes it of again; an exception's own way would pass the message."""
        return type(self), (self.code, self.detail)
