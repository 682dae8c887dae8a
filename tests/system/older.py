"""Drop-ins that make the agent's unit what it once was, for tests of upgrades from there."""

UNCONFINED = """\
[Service]
UnsetEnvironment=HOST_PROCESS DOORS
RestrictNamespaces=no
ProtectSystem=no
ProtectHome=no
PrivateTmp=no
PrivateMounts=no
ProtectControlGroups=no
ProtectKernelModules=no
ProtectKernelTunables=no
ProtectKernelLogs=no
ReadWritePaths=
DevicePolicy=auto
DeviceAllow=
ProtectClock=no
PrivateNetwork=no
IPAddressDeny=
RestrictAddressFamilies=
SystemCallFilter=
CapabilityBoundingSet=
CapabilityBoundingSet=~
"""
"""In the host's own mounts and network, with every capability."""

TAPS_BESIDE = f"{UNCONFINED}UnsetEnvironment=RUNTIME_DIRECTORY\n"
"""It takes itself for one without systemd, and has its taps beside it in its control group, as all once had."""
