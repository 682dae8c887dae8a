"""A change that goes out in waves: what is kept of it on the bus, what is decided, and who carries it out.

Everything that a rollout knows stands in retained messages below `rollouts/<id>`, written before it is acted upon, so
that anybody can go on with it from anywhere: see `record`. What its hosts did of it is not kept there but read from
their own statuses.
"""
