"""The certificate of an evaluation: what was judged, on whom, by which code, what it had seen.

It lies beside the results that it speaks of (`certificate.json`), and holds digests, names and
counts. Its results are the rows of results.csv that its judges measured, and those over all.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from common.errors import DamagedError, FolderError
from common.protocol.code import agreed_digest
from common.protocol.orders import Hex
from common.protocol.wire import read_spooled
from common.sections import Name
from common.settings import Table
from deploy.releases.documents import digest_of_file, read_document, write_document
from server.checkpoints import about_checkpoint
from server.lineage import Lineage
from server.overlap import kept
from server.results import all_of, group_of
from server.run import Run
from server.run_files import read_json

FILE: Final = "certificate.json"
STUDY: Final = "study.json"


class Judge(Table):
    """One held-out site: what it held, and whether its scans could be compared one by one.

    tuned: protocols in which it learnt from some of its own people; none of these figures is.
    """

    site: Name
    participants: int
    scans: int
    cohort: Hex
    compared: bool
    tuned: tuple[Name, ...] = ()


class Certificate(Table):
    """What is said of one evaluation."""

    format: Literal[1] = 1
    time: str
    study: str
    study_digest: Hex
    run: Hex
    code: Hex
    versions: dict[str, str]
    models: dict[str, Hex]
    group: str
    judges: tuple[Judge, ...]
    findings: tuple[str, ...]
    lineage: Lineage
    lineage_digest: Hex
    seen: Hex | Literal[""]
    results: Hex


def certify(run: Run, out: Path, key: Ed25519PrivateKey | None) -> Path:
    """Write the certificate of the evaluation whose answers lie in `out`, of the models of `run`.

    Raises
    ------
    FolderError
        If nobody judged there.
    """
    judges = _judges(out)
    if not judges:
        raise FolderError(f"{out} holds no evaluation: no held-out site has judged")
    lineage = about_checkpoint(run.federated.final, run.study).lineage
    group, seen = group_of(out), run.federated.seen
    provenance = read_json(run.folder / "provenance.json")
    found = Certificate(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        study=run.study.name,
        study_digest=run.study.digest,
        run=run.id,
        code=agreed_digest(run.study),
        versions=provenance["versions"],
        models={
            branch.model: digest_of_file(branch.final)
            for branch in run.branches()
            if branch.final.exists()
        },
        group=group,
        judges=judges,
        findings=kept(out).findings,
        lineage=lineage,
        lineage_digest=lineage.digest,
        seen=digest_of_file(seen) if seen.exists() else "",
        results=results_of(out / "results.csv", [judge.site for judge in judges], group),
    )
    write_document(out / FILE, found.model_dump(mode="json"), key)
    return out / FILE


def read_certificate(path: Path) -> Certificate:
    """A certificate, as it is written; whether it holds is another question."""
    try:
        return Certificate.model_validate(read_document(path))
    except ValidationError as error:
        raise FolderError(f"{path} is no certificate: {error.error_count()} faults") from None


def results_of(table: Path, judges: Sequence[str], group: str) -> str:
    """SHA-256 over the rows of results.csv that `judges` measured, and those over all of them."""
    wanted = {*judges, all_of(group)}
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row.get("phase") == "evaluate" and row.get("site") in wanted:
                    lines.writerow(row.values())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DamagedError(f"{table} cannot be read: {error}") from None
    return hashlib.sha256(text.getvalue().encode()).hexdigest()


def _judges(out: Path) -> tuple[Judge, ...]:
    """Who answered in this evaluation, and what each said that it holds."""
    sites = sorted({path.stem for path in (out / "evaluation").glob("*/*.safetensors")})
    return tuple(_judge(out, site) for site in sites)


def _judge(out: Path, site: str) -> Judge:
    census: Any = read_spooled(out / "census" / f"{site}.safetensors")
    return Judge(
        site=site,
        participants=census.participants.get("scans", 0),
        scans=census.support.get("scans", 0),
        cohort=census.cohort,
        compared=(out / "overlap" / f"{site}.safetensors").exists(),
        tuned=tuple(sorted({
            path.parents[1].name for path in out.glob(f"protocols/*/*/{site}.safetensors")
        })),
    )  # fmt: skip
