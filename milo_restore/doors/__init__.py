"""Doors into training programs that others wrote: one file per kind of program, none of which has to be edited.

A door waits until the program imports the library that it knows (see `milo_restore.hooks`), puts MILO where that
library has its loss, and writes into `milo_restore.doors.ledger` what it replaced. ``milo-restore run`` opens them all;
each has an ``install`` for a training program of one's own, to be called before the program's imports. BasicSR's door
is `milo_restore.basicsr.door`.
"""
