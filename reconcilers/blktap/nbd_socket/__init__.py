"""A server's own socket as a disk's device, for hypervisors that speak NBD: no kernel in between."""
