"""Holds weights, study, lineage and results against what a certificate says of them, offline.

Each claim is a sentence that holds, does not, or cannot be known from what lies here. A reader who
lacks the weights that were judged cannot hold a figure against them: that does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from common.errors import CallosumError, FolderError
from common.protocol.code import agreed_digest
from common.protocol.signing import read_public_keys
from common.protocol.wire import Stored, read_spooled
from common.study import read_resolved
from deploy.releases.certificate import FILE, STUDY, Certificate, read_certificate, results_of
from deploy.releases.documents import digest_of_file, fingerprint_of, read_document, signer_of
from deploy.releases.release import MANIFEST, listed
from server.checkpoints import SEEN, about_checkpoint, seen_by
from server.overlap import Held, held_before, held_now, took_part
from server.report.tables import read_results
from server.results import EVALUATION, measurements
from server.run import Run
from server.run_files import read_json, read_sealed

_WORDS: Final = {True: "holds", False: "DOES NOT HOLD", None: "not known"}


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that was looked at."""

    holds: bool | None  # None: it cannot be known here
    what: str

    @property
    def told(self) -> str:
        """A line."""
        return f"{_WORDS[self.holds]}: {self.what}"


def verified(folder: Path, model: Path | None = None, keys: Path | None = None) -> list[Claim]:
    """Every claim about a release, a run or an evaluation.

    model: where the run or release lies that was judged, if it is not `folder` or where it was.
    keys: the coordinator's public keys, known from a person; else whoever signed is told.

    Raises
    ------
    FolderError
        If there is neither a certificate nor a manifest to hold anything against.
    """
    there = folder / FILE
    if not there.exists() and not (folder / MANIFEST).exists():
        raise FolderError(
            f"{folder} holds no {FILE}; callosum release writes one, and callosum evaluate"
        )
    found = list(_manifest(folder, keys)) if (folder / MANIFEST).exists() else []
    if not there.exists():
        return [*found, Claim(None, "no held-out site has judged it, so no figures are claimed")]
    certificate = read_certificate(there)
    place = model or _place_of(folder)
    looks: tuple[tuple[str, Callable[[], Iterator[Claim]]], ...] = (
        ("certificate", lambda: _signature(there, keys)),
        ("study", lambda: _study(folder, certificate)),
        ("weights", lambda: _weights(place, certificate)),
        ("lineage", lambda: _lineage(folder, place, certificate)),
        ("results", lambda: _results(folder, certificate)),
    )
    for name, look in looks:
        found += _looked(name, look)
    return found


def _looked(name: str, look: Callable[[], Iterator[Claim]]) -> list[Claim]:
    """What one look finds; what is missing or damaged makes its own claims untrue, no others."""
    claims: list[Claim] = []
    try:
        for claim in look():
            claims.append(claim)  # noqa: PERF402  those before an error are kept
    except CallosumError as error:
        claims.append(Claim(False, f"{name}: {error}"))
    return claims


def _place_of(folder: Path) -> Path:
    """Where the model lies: here, or where the evaluation says that it was judged."""
    path = folder / EVALUATION
    return folder / str(read_sealed(path).get("of", "")) if path.exists() else folder


def _manifest(folder: Path, keys: Path | None) -> Iterator[Claim]:
    yield from _looked("manifest", lambda: _signature(folder / MANIFEST, keys))
    told = read_document(folder / MANIFEST).get("files")
    if not isinstance(told, dict):
        yield Claim(False, "manifest: it lists no files")
        return
    here = listed(folder)
    for name in sorted(told.keys() | here.keys()):
        if name not in here:
            yield Claim(False, f"manifest: {name} is missing")
        elif name not in told:
            yield Claim(False, f"manifest: {name} is not part of the release")
        elif here[name] != told[name]:
            yield Claim(False, f"manifest: {name} is not the file that was released")
    if here == told:
        yield Claim(True, f"manifest: all {len(told)} files are those that were released")


def _signature(path: Path, keys: Path | None) -> Iterator[Claim]:
    signer = signer_of(path)
    if signer is None:
        yield Claim(
            None if keys is None else False,
            f"{path.stem}: nobody signed it; whoever can write the folder can write it anew",
        )
        return
    print_ = fingerprint_of(signer)
    if keys is None:
        yield Claim(True, f"{path.stem}: signed by key {print_}; ask the coordinator for theirs")
        return
    known = {fingerprint_of(key) for key in read_public_keys(keys)}
    whose = f"the coordinator's key {print_}" if print_ in known else f"key {print_}, not in {keys}"
    yield Claim(print_ in known, f"{path.stem}: signed by {whose}")


def _study(folder: Path, certificate: Certificate) -> Iterator[Claim]:
    study = read_resolved(read_json(folder / STUDY), folder / STUDY)
    same = study.digest == certificate.study_digest
    yield Claim(same, f"study: {STUDY} is {certificate.study}, {certificate.study_digest[:12]}")
    ours = agreed_digest(study)
    other = "" if ours == certificate.code else f"; this machine's is {ours[:12]}"
    yield Claim(True, f"code: judged by code {certificate.code[:12]}{other}")


def _weights(place: Path, certificate: Certificate) -> Iterator[Claim]:
    for model, digest in sorted(certificate.models.items()):
        branch = place if model == "federated" else place / "comparisons" / model
        path = branch / "checkpoints" / "final.safetensors"
        if not path.exists():
            # a release holds the federated model alone
            what = f"weights: those of {model} are not at hand, {path} is missing"
            yield Claim(None if model != "federated" else False, what)
            continue
        same = digest_of_file(path) == digest
        yield Claim(same, f"weights: those of {model} are the ones that were judged, {digest[:12]}")


def _lineage(folder: Path, place: Path, certificate: Certificate) -> Iterator[Claim]:
    lineage = certificate.lineage
    names = ", ".join(lineage.contributors)
    yield Claim(lineage.digest == certificate.lineage_digest, f"lineage: {names} contributed")
    checkpoint = place / "checkpoints" / "final.safetensors"
    if checkpoint.exists():
        same = about_checkpoint(checkpoint).lineage == lineage
        yield Claim(same, "lineage: it is the one that the weights carry")
    seen = place / SEEN
    if seen.exists() and certificate.seen:
        same = digest_of_file(seen) == certificate.seen
        yield Claim(same, "lineage: tokens of the scans it has seen are those of the certificate")
    elif certificate.seen:
        yield Claim(None, f"lineage: {seen} is missing: which scans it has seen is not at hand")
    before = held_before(lineage, seen_by(checkpoint))
    for judge in _judges(folder, certificate):
        shared = took_part(judge, lineage.contributors, before)
        yield Claim(not shared, f"lineage: {shared or f'{judge.site} is not in it'}")
        if judge.arrays is None:
            what = f"scans of {judge.site} are not in it one by one; their tokens are not here"
            yield Claim(None, f"lineage: {what}")


def _judges(folder: Path, certificate: Certificate) -> list[Held]:
    """The judges with their tokens where these lie beside the evaluation, else as certified."""
    study = read_resolved(read_json(folder / STUDY), folder / STUDY)
    paths = {judge.site: folder / "census" / f"{judge.site}.safetensors"
             for judge in certificate.judges}  # fmt: skip
    reports = {site: read_spooled(path) for site, path in paths.items() if path.exists()}
    held = held_now(study, reports, folder / "overlap")
    prepared = certificate.lineage.stages[-1].prepared
    return [
        replace(held[judge.site], cohort=judge.cohort)
        if judge.site in held
        else Held(
            site=judge.site,
            cohort=judge.cohort,
            study=certificate.study,
            prepared=prepared,
            arrays=None,
        )
        for judge in certificate.judges
    ]


def _results(folder: Path, certificate: Certificate) -> Iterator[Claim]:
    judges = [judge.site for judge in certificate.judges]
    same = results_of(folder / "results.csv", judges, certificate.group) == certificate.results
    who = ", ".join(judges)
    yield Claim(same, f"results: rows of {who} in results.csv are the certified ones")
    if not (folder / "evaluation").exists():
        return
    study = read_resolved(read_json(folder / STUDY), folder / STUDY)
    run = Run(folder=folder, id=certificate.run, study=study)
    for path in sorted((folder / "evaluation").glob("*/*.safetensors")):
        Stored(path).check()
    told = read_results(run)
    yield Claim(
        told == measurements(run), "results: results.csv is what the sites' own reports say"
    )
