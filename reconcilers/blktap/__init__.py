"""blktap: one user-space server per disk (a "tap"), and a block device made from what it exports."""
