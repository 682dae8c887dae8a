"""`python -I -S …/reconcilers/jail`: the launcher process. Bare, so that it is there in a few milliseconds."""

import sys

sys.path.insert(0, __file__.rpartition("/reconcilers/")[0])

from reconcilers.jail.warden import main

main(sys.argv[1:])
