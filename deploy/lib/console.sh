# shellcheck shell=bash
# How the scripts in deploy/ speak to the person who runs them. To be sourced.

say() { printf '%s\n' "$*"; }

step() { printf '\n== %s\n' "$*"; }

# die WHAT-IS-WRONG WHAT-TO-DO
die() {
    printf '\n%s: %s\n  %s\n' "$(basename "$0")" "$1" "$2" >&2
    exit 1
}

# patiently WHAT COMMAND… - says what is done, shows that it goes on, and shows the output only of what failed
patiently() {
    local what=$1 log status=0 ticker started=$SECONDS
    shift
    log=$(mktemp)
    printf '%s ' "$what"
    # The ticker ends by itself with the script, whatever ended that.
    while sleep 1 && kill -0 $$; do printf .; done 2>/dev/null &
    ticker=$!
    "$@" >"$log" 2>&1 </dev/null || status=$?
    kill "$ticker"
    wait "$ticker" 2>/dev/null || true
    if [ "$status" = 0 ]; then
        printf ' done, %s s\n' "$((SECONDS - started))"
    else
        printf ' failed with exit code %s:\n' "$status"
        tail -n 40 "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}
