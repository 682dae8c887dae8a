"""What is started, and how narrow its jail is: the one thing that crosses from the agent to the launcher process."""

import marshal


class Order:
    """One process to be started. Plain, since a bare interpreter has to read it quickly.

    Attributes:
        program: Absolute path.
        arguments: With the program's name first.
        environment: All of it.
        files: Absolute paths of what it sees, read-only and under the same names: its program, libraries and devices.
        mount_point: Absolute path of an empty file that it may mount over; "" for none.
        user: User and group id that it runs as.
        capabilities: Numbers of those that it keeps, in a user namespace of its own.
        limits: Pairs of a resource's number (getrlimit(2)) and its limit.
        landlocked: It opens nothing but `files` and its own descriptors from number 3 on, and mounts nothing.
        system_calls: The program of the seccomp filter, an array of struct sock_filter.
        strict: Whether to start nothing when a piece of the jail can't be had; otherwise the rest is made do with.
        fields: What the journal is to know of what it prints, where it is told: names and values.
        held: Path of a file that is there while it is kept from working on purpose, which is no hang; "" for none.
        record: Path of the file that says what it serves, limits included, with which it may be slow; "" for none.
        daemon: Empty where the program is the server. Otherwise it starts a server that goes on without it, prints
            that one's process id and ends, and this asks such a server for a sign of life, its process id behind it.
    """

    def __init__(
        self,
        *,
        program: str,
        arguments: list[str],
        environment: dict[str, str],
        files: list[str],
        mount_point: str,
        user: int,
        capabilities: list[int],
        limits: list[tuple[int, int]],
        landlocked: bool,
        system_calls: bytes,
        strict: bool,
        fields: dict[str, str],
        held: str,
        record: str,
        daemon: list[str],
    ) -> None:
        self.program = program
        self.arguments = arguments
        self.environment = environment
        self.files = files
        self.mount_point = mount_point
        self.user = user
        self.capabilities = capabilities
        self.limits = limits
        self.landlocked = landlocked
        self.system_calls = system_calls
        self.strict = strict
        self.fields = fields
        self.held = held
        self.record = record
        self.daemon = daemon

    def encode(self) -> bytes:
        """For one packet. Marshal, because it is built in and both ends are one installation."""
        return marshal.dumps(vars(self))

    @classmethod
    def decode(cls, packet: bytes) -> "Order":
        """Read what `encode` made. Only root's own agent is ever listened to."""
        return cls(**marshal.loads(packet))  # noqa: S302  # nosec B302
