"""tapdisk, blktap's own block server: the program `tap-ctl`, what it prints, and a tap's server made of both."""
