"""A release: a finished model with all that others need to use it, judge it and hold it to account.

RELEASE/
  checkpoints/final.safetensors   weights, plan and lineage
  study.json, provenance.json     what was agreed, and by which code it was done
  seen.safetensors                tokens of the scans it has seen, so that none of them judges it
  lineage.json                    the lineage for people: sites, counts, uses
  results.csv, census.json, overlap.json
  audit.csv, audit.json           what attacks on the run have found, if somebody made any
  certificate.json, .sig          of the study's own evaluation
  MODEL_CARD.md
  manifest.json, .sig             SHA-256 of every other file

It stands where a run does: `callosum study start --from`, `callosum evaluate`, `callosum show`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import FolderError
from common.network.buildable import check_buildable
from common.protocol.wire import Stored
from common.runtime.durable import storage_checked, write_atomically
from deploy.releases.certificate import certify
from deploy.releases.documents import coordinator_key, digest_of_file, write_document
from deploy.releases.model_card import model_card
from server.checkpoints import SEEN, about_checkpoint
from server.constant_models import release_constants
from server.overlap import FILE as OVERLAP
from server.overlap import kept
from server.report.audit import NAME, TABLE
from server.report.comparisons import comparisons
from server.report.tables import read_results
from server.run import Run, read_run

MANIFEST: Final = "manifest.json"
_FILES: Final = (
    "checkpoints/final.safetensors",
    "study.json",
    "provenance.json",
    "results.csv",
    "census.json",
    OVERLAP,
    TABLE,
    NAME,
)


def write_release(folder: Path, out: Path, key: Path | None = None, *, tokens: bool = True) -> Path:
    """Put the finished run in `folder` together in `out`, whole or not at all.

    Raises
    ------
    FolderError
        If the run is not finished, or `out` exists.
    """
    run, signer = read_run(folder), coordinator_key(folder, key)
    if not run.federated.final.exists() or not (folder / "results.csv").exists():
        raise FolderError(f"{folder} is not finished; its own command goes on")
    if out.exists():
        raise FolderError(f"{out} exists; a release is written once, give --out a new folder")
    Stored(run.federated.final).check()
    with storage_checked(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made.chmod(0o755)  # it is for others
        with storage_checked(made):
            _fill(made, run, signer, tokens=tokens)
            made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return out


def listed(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a release but its manifest, by path inside it."""
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    return {
        name: digest_of_file(path)
        for name, path in found.items()
        if name not in (MANIFEST, "manifest.sig")
    }


def _fill(made: Path, run: Run, key: Ed25519PrivateKey | None, *, tokens: bool) -> None:
    names = (*_FILES, SEEN) if tokens else _FILES
    for name in names:
        if (run.folder / name).exists():
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(run.folder / name, made / name)
    release_constants(run, made)
    lineage = about_checkpoint(run.federated.final, run.study).lineage
    write_atomically(made / "lineage.json", lineage.model_dump_json(indent=1).encode())
    if any((run.folder / "evaluation").glob("*/*.safetensors")):
        certificate = certify(run, run.folder, key)
        for path in (certificate, certificate.with_suffix(".sig")):
            if path.exists():
                shutil.copyfile(path, made / path.name)
    check_buildable(run.study, run.folder / "study.json")
    found = comparisons(run.study, read_results(run))
    card = model_card(run.study, lineage, found, kept(run.folder))
    write_atomically(made / "MODEL_CARD.md", card.encode())
    about = {"format": 1, "study": run.study.name, "files": listed(made)}
    write_document(made / MANIFEST, about, key)
