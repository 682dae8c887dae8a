"""What phases and conditions mean to an operator, and what to do. Reasons carry theirs, see `reconcilers.reason`."""

from agent.status import ConditionType, Phase

PHASES: dict[Phase, tuple[str, str]] = {
    Phase.PENDING: ("The disk waits for its turn.", "Wait; a disk that waits for more than a minute is worth a look."),
    Phase.ATTACHING: ("It is being brought up.", "Wait."),
    Phase.UP: ("It is there as the definition wants it; or the definition wants an empty drive.", "Nothing."),
    Phase.DEGRADED: (
        "It is there and serves, yet something is not as the definition wants it.",
        "Act on the reason; guests can go on meanwhile.",
    ),
    Phase.DETACHING: ("It is being taken down.", "Wait."),
    Phase.IN_USE: (
        "It should go or change, but somebody has it open.",
        "End the holder that the message names; the agent goes on by itself then.",
    ),
    Phase.DOWN: ("It is not there, and that is right: taken down, or missing and optional.", "Nothing."),
    Phase.REFUSED: (
        "It can't be brought up before the definition, the image or its other user changes.",
        "Act on the reason. The agent looks again when the image changes or another document comes.",
    ),
    Phase.FAILED: ("Bringing it up did not work.", "Act on the reason; the agent tries again at `next_retry`."),
    Phase.LOST: (
        "It was up and its device or server went away: guests get I/O errors.",
        "Let go of the device, or wait until nobody has it open: it is rebuilt then. Find out what ended the server.",
    ),
    Phase.ORPHANED: (
        "There is a device with the agent's mark, and no document for it. It is left alone.",
        "Push the guest's definition again, or run `tapster gc`.",
    ),
    Phase.WITHDRAWN: (
        "Its document was removed from the bus without an absent document. It is left alone.",
        "Push the definition again, or `tapster absent GUEST` to take the disks down.",
    ),
}

CONDITIONS: dict[ConditionType, tuple[str, str]] = {
    ConditionType.ACCEPTED: (
        "Of a guest: whether the newest document counts.",
        "If not, the one before it stays in force: mend what the message names and push again.",
    ),
    ConditionType.READY: (
        "Of a guest: whether every disk is as its document wants it.",
        "If not, the message names the worst disk; see its phase and reason.",
    ),
    ConditionType.SYNCED: (
        "Of a host: whether it has heard everything that is retained on the bus for it.",
        "If not, disks are kept as the store says; look at the broker, the network and the access list.",
    ),
    ConditionType.STORED: (
        "Of a host: whether documents can be stored.",
        "If not, none is accepted and disks stay: free space or mend the file system under `paths.state`.",
    ),
    ConditionType.TRUSTED: (
        "Of a host that asks for signatures: whether it knows whom to trust.",
        "If not, no signed document is accepted: see the message and [SECURITY.md](SECURITY.md).",
    ),
    ConditionType.FRESH: (
        "Of a host that asks for signatures: whether the signers were heard of lately.",
        "If not, somebody may be keeping newer documents from it: look at the broker, and sign anew.",
    ),
}
