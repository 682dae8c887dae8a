"""The jail: how a server is started so that it sees its image and nothing else.

    agent: Launcher ──order, descriptors──▶ launcher process ──fork──▶ enter the jail ──exec──▶ server

A server reads what a guest wrote and may fall to it. So it has the image as an inherited descriptor, a file tree of its
own with its program and libraries in it, no network, no other process that it could reach, and the system calls that a
block server needs. It is no child of the agent's and outlives it.

    order.py      what is started, and how narrow its jail is
    enter.py      the jail itself, piece by piece
    kernel.py     the system calls that it is made of
    warden.py     the launcher process: takes orders, forks, enters, execs
    launcher.py   the agent's side of it
    profile.py    the two jails that there are, and what a program needs in one
    filter.py     the system calls that a server may make

The first four are loaded by a bare interpreter for each process that starts servers, so they import little.
"""
