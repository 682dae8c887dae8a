"""Every reason that a status, an event or an error can carry, in one enum.

Each member has its CamelCase word (the contract with operators and tools), what it means, what to do about it,
and whether time alone can mend it (`transient`) or only a change of inputs can.
"""

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """Why something is as it is. The value is the word that goes on the bus."""

    meaning: str
    remedy: str
    transient: bool

    def __new__(cls, word: str, meaning: str, remedy: str, transient: bool = False) -> Self:
        """Make a member from its word, meaning, remedy and whether time alone can mend it."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        member.remedy = remedy
        member.transient = transient
        return member

    # A document as a whole: it is rejected, and the last good one stays in force.
    UNREADABLE = "Unreadable", "The file with the document can't be read.", "Check its name and permissions."
    DOCUMENT_TOO_LARGE = (
        "DocumentTooLarge",
        "The document is larger than the limit.",
        "Send a smaller definition.",
    )
    NOT_UTF8 = "NotUtf8", "The document is not valid UTF-8.", "Save the document as UTF-8."
    MALFORMED_XML = "MalformedXml", "The XML is not well-formed.", "Mend the XML at the line given."
    DOCTYPE_FORBIDDEN = (
        "DoctypeForbidden",
        "The XML has a DOCTYPE or declares entities, which can read files and use up memory.",
        "Remove the DOCTYPE; libvirt definitions need none.",
    )
    MALFORMED_JSON = "MalformedJson", "The JSON is not well-formed.", "Mend the JSON at the line given."
    INVALID_DOCUMENT = (
        "InvalidDocument",
        "The document lacks a field, has one too many, or one of the wrong type.",
        "Compare with the desired document in the README.",
    )
    NOT_A_DOMAIN = (
        "NotADomain",
        "The root element is not <domain>.",
        "Send what `virsh dumpxml GUEST` prints.",
    )
    INVALID_NAME = (
        "InvalidName",
        "The guest's name is missing or can't be a folder and a topic level.",
        "Use up to 128 ASCII letters, digits and _.,=@:~()&- and blanks, beginning with a letter, digit or _.",
    )
    NAME_MISMATCH = (
        "NameMismatch",
        "The topic names one guest and the document another.",
        "Publish the document on its own guest's topic.",
    )
    TOO_MANY_DISKS = "TooManyDisks", "The definition has more disks than the limit.", "Split the guest."
    TOO_MANY_GUESTS = (
        "TooManyGuests",
        "This host remembers as many guests as it may.",
        "Raise limits.guests, or take guests off this host that are no more.",
    )
    TOO_DEEP = (
        "TooDeep",
        "The XML is nested deeper than the limit.",
        "Send what `virsh dumpxml GUEST` prints.",
    )
    STALE_GENERATION = (
        "StaleGeneration",
        "The document's generation is below the one on record.",
        "Push again with a higher generation.",
    )
    GENERATION_CONFLICT = (
        "GenerationConflict",
        "The same generation was seen before with other content: two operators pushed at once.",
        "Compare the two definitions and push the right one with a higher generation.",
    )
    DIGEST_MISMATCH = (
        "DigestMismatch",
        "The sha256 sent with the document is not the document's.",
        "Push again; if it recurs, something on the way changes documents.",
    )
    SIGNATURE_MISSING = (
        "SignatureMissing",
        "The document is not signed, and this host, or this guest since it was signed once, takes signed ones only.",
        "Push it with `tapster push --sign KEY`.",
    )
    SIGNATURE_INVALID = (
        "SignatureInvalid",
        "The signed envelope is broken, or a signature in it is not over this content.",
        "Sign and push again; if it recurs, something on the way changes documents.",
    )
    SIGNER_UNKNOWN = (
        "SignerUnknown",
        "No key that this host trusts has signed the document.",
        "Sign with a key that is in force; `tapster keys list` shows them.",
    )
    THRESHOLD_NOT_MET = (
        "ThresholdNotMet",
        "Fewer keys have signed the document than must.",
        "Have others add their signatures with `tapster sign`, and push the result.",
    )
    SCOPE_MISMATCH = (
        "ScopeMismatch",
        "The signed document is for another fleet, host or group than the topic it came on.",
        "Push it where it was signed for; if nobody did, somebody replays signed documents.",
    )
    TRUST_UNUSABLE = (
        "TrustUnusable",
        "The keys in the folder trust.keys can't be used, so no signature counts.",
        "Mend what the message names, and restart the agent.",
    )
    TRUST_STALE = (
        "TrustStale",
        "The signers have not been heard of for longer than they said: the broker may keep documents back.",
        "Renew the statement with `tapster keys rotate`; if that changes nothing, look at the broker.",
        True,
    )

    # One disk's definition: that disk is refused, the others go on.
    MISSING_TARGET = "MissingTarget", "The disk has no <target dev=…>.", "Name the target, for example vda."
    INVALID_TARGET = (
        "InvalidTarget",
        "The target's name can't be a file name.",
        "Use up to 32 ASCII letters, digits and _.- beginning with a letter or digit.",
    )
    DUPLICATE_TARGET = (
        "DuplicateTarget",
        "Two disks of the guest have one target.",
        "Give each disk its own target.",
    )
    MISSING_SOURCE = "MissingSource", "The disk has no source.", "Name the image in <source file=…>."
    INVALID_SOURCE = (
        "InvalidSource",
        "The source is not an absolute path without '..' and control characters.",
        "Name the image by its absolute path.",
    )
    INVALID_VALUE = (
        "InvalidValue",
        "An attribute has a value outside its range.",
        "Use one of the values named.",
    )
    UNKNOWN_DRIVER = "UnknownDriver", "The driver's name is not known.", "See the driver table in the README."
    UNKNOWN_FORMAT = "UnknownFormat", "The image format is not known.", "See the driver table in the README."
    UNSUPPORTED_SOURCE = (
        "UnsupportedSource",
        "The disk's type is not file or block.",
        "Give the guest an image file or a block device, or leave this disk to the hypervisor.",
    )
    UNSUPPORTED_FEATURE = (
        "UnsupportedFeature",
        "The disk asks for something that would be unsafe to ignore and is not implemented.",
        "Remove the element named, or leave this disk to the hypervisor.",
    )
    CONFLICTING_DRIVER = (
        "ConflictingDriver",
        "The disk names its driver in more than one place, and they differ.",
        "Keep one of them.",
    )

    INCOMPLETE_DEFINITION = (
        "IncompleteDefinition",
        "Other disks of the definition have errors, so nothing is concluded about this one.",
        "Mend the errors listed and push again.",
    )

    # The source on this host.
    IMAGE_MISSING = "ImageMissing", "The source does not exist on this host.", "Create it or mend the path."
    IMAGE_EMPTY = (
        "ImageEmpty",
        "The image has no bytes.",
        "Create the image with its size, e.g. truncate -s 10G.",
    )
    IMAGE_TOO_SMALL = (
        "ImageTooSmall",
        "The image is smaller than one sector or than the part that the definition names.",
        "Check that the image arrived whole.",
    )
    IMAGE_UNALIGNED = (
        "ImageUnaligned",
        "The image's size is no multiple of 512 bytes, and its server would cut off the rest.",
        "Round the image up, e.g. truncate -s %512.",
    )
    NOT_AN_IMAGE = (
        "NotAnImage",
        "The source is a directory, FIFO, socket, character device, or a program that runs as its owner.",
        "Name a regular file, or a block device by its name in /dev.",
    )
    OUTSIDE_POOLS = (
        "OutsidePools",
        "The source is not in an image pool, or the way to it leads over a link or into another mount.",
        "Move the image to a pool and name it there; or add its folder, or the mount's, to images.pools.",
    )
    DEVICE_NOT_ALLOWED = (
        "DeviceNotAllowed",
        "The block device is not among those that guests may have.",
        "Add a pattern that names it to images.devices.",
    )
    HARD_LINKED = (
        "HardLinked",
        "The image has further names, which may be outside of the pool and somebody else's.",
        "Copy the image and use the copy, or allow such images with images.hard_links.",
    )
    PERMISSION_DENIED = (
        "PermissionDenied",
        "The host denies access to the source.",
        "Check owner, mode and mount.",
    )
    READ_ONLY_SOURCE = (
        "ReadOnlySource",
        "The source can't be written and the definition wants a writable disk.",
        "Add <readonly/>, or make the image writable. There is no silent read-only fallback.",
    )
    FORMAT_MISMATCH = (
        "FormatMismatch",
        "The image's header is not of the declared format.",
        "Declare the image's real format, or replace the image.",
    )
    BACKING_UNDECLARED = (
        "BackingUndeclared",
        "The image names another file that it reads from, and the definition does not, or names a different one.",
        "Declare the images below it, each in a <backingStore> with its format, or flatten it (qemu-img convert).",
    )
    BACKING_MISSING = (
        "BackingMissing",
        "The definition declares an image below one that stands alone.",
        "Take the backingStore out of the definition, or name the overlay.",
    )
    IMAGE_DAMAGED = (
        "ImageDamaged",
        "The image is not consistent: in its header, or in what its server met while it served it.",
        "Take the disk down and check the image with qemu-img check.",
    )
    SOURCE_IN_USE = (
        "SourceInUse",
        "Another guest, loop device or QEMU process has the source.",
        "Find the holder named in the message and let it go first.",
        True,
    )
    IMAGE_SHRUNK = (
        "ImageShrunk",
        "The image became smaller than the device over it; the device is not shrunk under its guest.",
        "Grow the image back, or take the disk down and up to accept the new size.",
    )
    NOT_A_LUN = "NotALun", "device='lun' needs a block device.", "Use device='disk' for a file."

    # Backends and the kernel.
    BACKEND_UNAVAILABLE = (
        "BackendUnavailable",
        "This host lacks what the backend needs.",
        "Do what the message says; it is found at the next full look (controller.resync), or by `tapster resync`.",
        True,
    )
    FORMAT_UNSUPPORTED = (
        "FormatUnsupported",
        "No server on this host opens the format.",
        "Convert the image (qemu-img convert) or install a server that has the format.",
    )
    SERVER_FAILED = (
        "ServerFailed",
        "The disk's server did not start; its last log lines are in the message.",
        "Act on the log lines; the agent tries again by itself.",
        True,
    )
    AIO_SLOTS_TAKEN = (
        "AioSlotsTaken",
        "The host has too few slots for asynchronous I/O left for the disk's server (fs.aio-max-nr).",
        "Raise the limit as the message says, or take disks down; the agent tries again by itself.",
        True,
    )
    SERVER_LOST = (
        "ServerLost",
        "The disk's server died or was killed: reads and writes fail.",
        "Let go of the device (see in_use); it is rebuilt when nobody holds it.",
        True,
    )
    STORAGE_LOST = (
        "StorageLost",
        "The file system that the disk's image is on is gone: reads and writes fail.",
        "Mount it again and let go of the device (see in_use); it is rebuilt when nobody holds it.",
        True,
    )
    SERVER_CRASHES = (
        "ServerCrashes",
        "The disk's server dies again and again; its last log lines are in the message.",
        "Act on the log lines; it is started less and less often, and five times in ten minutes at most.",
        True,
    )
    QUIESCED = (
        "Quiesced",
        "The disk is held still, as somebody asked for: reads and writes wait.",
        "Copy the image, then run `tapster resume GUEST`; the disk goes on by itself when the time is over.",
        True,
    )
    SERVER_HUNG = (
        "ServerHung",
        "The disk's server runs and does not answer: reads and writes wait.",
        "Let a stopped server go on (kill -CONT), or mend the storage under its image; the disk goes on then.",
        True,
    )
    NO_LOOP_DEVICE = (
        "NoLoopDevice",
        "The kernel gave no free loop device.",
        "Raise max_loop or free some.",
        True,
    )
    KERNEL_ERROR = (
        "KernelError",
        "The kernel refused; the errno is in the message.",
        "Act on the errno.",
        True,
    )
    DEVICE_VANISHED = (
        "DeviceVanished",
        "The block device went away behind the agent's back.",
        "Nothing to do: it is attached again. Find out who detached it.",
        True,
    )
    DEVICE_IN_USE = (
        "DeviceInUse",
        "Something still has the disk's device open, so it is not taken away.",
        "Stop the holder named in the message; the agent goes on by itself then.",
        True,
    )
    TIMED_OUT = (
        "TimedOut",
        "A step took longer than its deadline.",
        "Look for hung storage; it is tried again.",
        True,
    )
    INTERNAL_ERROR = (
        "InternalError",
        "A defect in the agent.",
        "Report it with the agent's log; the disk stays as it is and is tried again.",
        True,
    )

    # The host as a whole.
    STORE_FAILED = (
        "StoreFailed",
        "The store of documents can't be written, so no new document is accepted; disks are kept as they are.",
        "Act on the message (a full disk, as a rule); documents are taken in again by themselves.",
        True,
    )
    BUS_TROUBLE = (
        "BusTrouble",
        "Something is wrong between the agent and the broker; disks are kept as the store says.",
        "Act on the message; the agent goes on trying.",
        True,
    )

    # States that are no error.
    AS_DESIRED = "AsDesired", "What is asked for is what is there.", "Nothing to do."
    PROGRESSING = "Progressing", "Work is under way.", "Wait.", True
    NO_MEDIUM = "NoMedium", "The drive is empty, as its definition says.", "Nothing to do."
    OPTIONAL_MISSING = (
        "OptionalMissing",
        "The image is missing, and startupPolicy says the guest can start without it.",
        "Nothing to do, or create the image.",
    )
    TAKEN_DOWN = "TakenDown", "An absent document took the disk down.", "Nothing to do."
    ACCEPTED = "Accepted", "The document was stored and is in force.", "Nothing to do."
    WITHDRAWN = (
        "Withdrawn",
        "The document was removed from the bus without an absent document; disks stay as they are.",
        "Publish the definition again, or an absent document to take the disks down.",
    )
    UNKNOWN_GUEST = (
        "UnknownGuest",
        "The device carries this agent's tag, but there is no document for its guest.",
        "Publish the guest's definition again, or run `tapster gc` to see and remove what nobody claims.",
    )
