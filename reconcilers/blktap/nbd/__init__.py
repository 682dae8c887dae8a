"""The kernel's nbd over a server's unix socket: handshake, netlink, devices."""
