"""What a host obeys: the keys in force, how many of them must sign, and whether unsigned documents count at all. Pure.

The folder `trust.keys` is where trust begins; statements on the bus lead on from there. Host and folder have the last
word: when the folder's keys change, what older statements said is void, and the next one must be signed by the
folder's keys. A statement's version never goes back, not even then.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Protocol, Self

from agent.definition import DocumentRejected, Finding
from agent.setting_sections import TrustSettings
from agent.trust.dsse import Envelope
from agent.trust.keys import KeyFileError, PublicKey, trusted_keys
from agent.trust.statement import TrustStatement, read_chain, read_statement, utc
from reconcilers.reason import Reason


class Opener(Protocol):
    """Says whether the signatures of an envelope are worth anything."""

    @property
    def fleet(self) -> str:
        """The fleet that the document must be for."""

    def signers(self, envelope: Envelope) -> tuple[str, ...]:
        """Ids of the keys in force that have signed, at least one.

        Raises:
            DocumentRejected: They are not enough.
        """


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Takes every envelope as it is: for operators who look at what is on the bus, never for a host."""

    fleet: str

    def signers(self, envelope: Envelope) -> tuple[str, ...]:
        """What the signatures say about themselves."""
        return tuple(signature.keyid for signature in envelope.signatures)


@dataclass(frozen=True)
class Keyring:
    """Keys, and how many of them must sign."""

    keys: frozenset[PublicKey]
    threshold: int

    @cached_property
    def digest(self) -> str:
        """Tells this set of keys from every other one."""
        parts = b"".join(sorted(key.raw for key in self.keys))
        return hashlib.sha256(b"%d\n%s" % (self.threshold, parts)).hexdigest()

    def signers(self, envelope: Envelope) -> tuple[str, ...]:
        """Ids of the keys that have signed, in order.

        Raises:
            DocumentRejected: SignatureInvalid, SignerUnknown or ThresholdNotMet.
        """
        found = envelope.signers(self.keys)
        if len(found) >= self.threshold:
            return tuple(sorted(key.id for key in found))
        known = {key.id for key in self.keys}
        claimed = {signature.keyid for signature in envelope.signatures} & known
        if broken := sorted(claimed - {key.id for key in found}):
            reason, why = Reason.SIGNATURE_INVALID, f"the signature of key {short(broken[0])} is not over this content"
        elif not found:
            named = ", ".join(short(signature.keyid) or "without id" for signature in envelope.signatures)
            reason, why = Reason.SIGNER_UNKNOWN, f"no key in force has signed ({len(known)} are); signers: {named}"
        else:
            why = f"{len(found)} of the keys in force signed, and {self.threshold} of {len(known)} must"
            reason = Reason.THRESHOLD_NOT_MET
        raise DocumentRejected(Finding(reason, why, "/signatures", None))


@dataclass(frozen=True, slots=True)
class TrustRecord:
    """What must outlive restarts: the highest version followed, what it said, and from which folder's keys."""

    version: int
    statement: bytes
    root: str


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What this host obeys now. Each statement that counts makes a new one.

    Attributes:
        fleet: This host's fleet.
        required: Unsigned documents are refused.
        root: The keys in the folder.
        unusable: Why the folder's keys can't be used; then no signature counts.
        record: The highest statement ever followed.
        trouble: What is wrong with the statements on the bus.
    """

    fleet: str
    required: bool
    root: Keyring
    unusable: str | None = None
    record: TrustRecord | None = None
    trouble: Finding | None = None

    @classmethod
    def begin(cls, settings: TrustSettings, fleet: str, record: TrustRecord | None) -> Self:
        """Read the folder, and go on from what is on record."""
        root, unusable = _root(settings)
        return cls(fleet=fleet, required=settings.required, root=root, unusable=unusable, record=record)

    @cached_property
    def statement(self) -> TrustStatement | None:
        """The statement in force; None while the folder's keys are."""
        if self.record is None or self.record.root != self.root.digest:
            return None
        return TrustStatement.model_validate_json(self.record.statement)

    @cached_property
    def keyring(self) -> Keyring:
        """The keys in force."""
        statement = self.statement
        return Keyring(statement.public_keys, statement.threshold) if statement else self.root

    @property
    def used(self) -> bool:
        """Whether this host has anything to do with signatures."""
        return self.required or self.unusable is not None or bool(self.root.keys)

    def signers(self, envelope: Envelope) -> tuple[str, ...]:
        """See `Opener`."""
        if self.unusable is not None:
            raise DocumentRejected(Finding(Reason.TRUST_UNUSABLE, self.unusable, "", None))
        return self.keyring.signers(envelope)

    def admit_unsigned(self, *, signed_before: bool) -> None:
        """Let an unsigned document of a guest pass; `signed_before` means that one with signatures is on record.

        Raises:
            DocumentRejected: SignatureMissing.
        """
        if self.required:
            why = "it is not signed, and this host takes signed documents only (trust.required)"
        elif signed_before and self.used:
            why = "it is not signed, and a signed document of the guest is on record"
        else:
            return
        raise DocumentRejected(Finding(Reason.SIGNATURE_MISSING, f"{why}; `tapster push --sign KEY`", "", None))

    def followed(self, payload: bytes, *, max_bytes: int) -> "Trust":
        """What this host obeys after a look at the trust topic; what is wrong there changes nothing but `trouble`."""
        if not payload:
            gone = "the trust statement was taken off the bus; the keys in force stay so until a newer one comes"
            return replace(self, trouble=Finding(Reason.WITHDRAWN, gone, "", None) if self.record else None)
        try:
            links = read_chain(payload, max_bytes=max_bytes)
        except DocumentRejected as error:
            return replace(self, trouble=error.findings[0])
        trust = self
        for link in links:
            try:
                trust = trust._after(link)
            except DocumentRejected as error:
                trust = replace(trust, trouble=error.findings[0])
        return trust

    def freshness(self, at: datetime) -> tuple[Reason | None, str] | None:
        """Whether the signers were heard of lately: no reason if so, else TrustStale. None if nobody needs to know."""
        statement = self.statement
        if statement is None:
            never = "no trust statement was heard yet, so it can't be told whether the broker keeps anything back"
            return (Reason.TRUST_STALE, f"{never}; publish one with `tapster keys rotate`") if self.required else None
        said = f"trust statement {statement.version} is good until {utc(statement.expires)}"
        if at < statement.expires:
            return None, said
        return Reason.TRUST_STALE, f"{said}, and no newer one was heard: find out whether the broker keeps it back"

    def standing(self) -> tuple[Reason | None, str]:
        """Whether keys and statements are as they should be, in a word and a sentence."""
        if self.unusable is not None:
            return Reason.TRUST_UNUSABLE, self.unusable
        if self.trouble is not None:
            return self.trouble.reason, self.trouble.message
        keyring, statement = self.keyring, self.statement
        origin = f"trust statement {statement.version}" if statement else "the folder trust.keys"
        names = ", ".join(sorted(short(key.id) for key in keyring.keys))
        return None, f"{keyring.threshold} of {len(keyring.keys)} keys must sign, by {origin}: {names}"

    def _after(self, link: Envelope) -> "Trust":
        """What is obeyed after one statement.

        Raises:
            DocumentRejected: It does not count, and this is why.
        """
        statement, known = read_statement(link), self.record
        if statement.fleet != self.fleet:
            why = f"the trust statement is for fleet {statement.fleet[:80]!r}, and this host is in {self.fleet!r}"
            raise DocumentRejected(Finding(Reason.SCOPE_MISMATCH, why, "/fleet", None))
        if known is not None:
            self._check_version(statement, link, known)
            if statement.version == known.version:
                return replace(self, trouble=None)
        self.signers(link)
        record = TrustRecord(statement.version, link.payload, self.root.digest)
        return replace(self, record=record, trouble=None)

    def _check_version(self, statement: TrustStatement, link: Envelope, known: TrustRecord) -> None:
        if statement.version < known.version:
            why = (
                f"the newest trust statement on the bus is version {statement.version}, and {known.version} is on "
                "record: the broker forgot or holds it back; publish the newest again"
            )
            raise DocumentRejected(Finding(Reason.STALE_GENERATION, why, "/version", None))
        if statement.version == known.version and link.payload != known.statement:
            why = (
                f"another trust statement of version {known.version} is on record: two operators rotated at once; "
                "agree on one, and publish it with a higher version"
            )
            raise DocumentRejected(Finding(Reason.GENERATION_CONFLICT, why, "/version", None))
        if statement.version == known.version and known.root != self.root.digest:
            why = (
                f"the keys in the folder changed since trust statement {known.version}, so it counts no more and the "
                "folder's keys are in force; publish a new one with `tapster keys rotate`"
            )
            raise DocumentRejected(Finding(Reason.STALE_GENERATION, why, "/version", None))


def short(keyid: str) -> str:
    """A key's id for people."""
    return keyid[:12]


def _root(settings: TrustSettings) -> tuple[Keyring, str | None]:
    try:
        keys: Iterable[PublicKey] = trusted_keys(settings.keys).values()
    except KeyFileError as error:
        return Keyring(frozenset(), settings.threshold), str(error)
    root = Keyring(frozenset(keys), settings.threshold)
    count = len(root.keys)
    if settings.required and not count:
        return (
            root,
            f"{settings.keys}: there are no keys, and trust.required refuses what none has signed; put keys there",
        )
    if 0 < count < settings.threshold:
        return root, f"{settings.keys}: there are {count} keys, and {settings.threshold} must sign (trust.threshold)"
    return root, None
