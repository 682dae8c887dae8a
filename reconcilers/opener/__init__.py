"""What a confined service may use and may not open itself is opened by another one, which can do that and no more.

    service ──a name and arguments──▶ <folder>/<door>.sock ──systemd──▶ tapster-<door>@.service
            ◀──── the open file (unix(7), SCM_RIGHTS), or why not ────┘

What comes is a file or socket like any other, and whoever opened it has ended: nothing stands in the way of its bytes.
Where the environment names no folder of doors, as on a desk, everything is opened here.
"""
