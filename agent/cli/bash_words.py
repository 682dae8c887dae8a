"""The words of a command line as bash hands them over for completion: cut at each `=`, and put together again here.

`-l site=a` comes as `-l`, `site`, `=`, `a`, as `=` is one of COMP_WORDBREAKS, and what is offered takes the place of
`a` alone (bash(1), Programmable Completion). Other shells cut at blanks only.
"""

import io
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, redirect_stdout


@contextmanager
def mended(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Put together what bash has cut, for the block that prints what is offered, and cut that in the same way.

    Does nothing in a process that bash has not called for completion.
    """
    if environment.get("_TAPSTER_COMPLETE") != "complete_bash" or "COMP_WORDS" not in environment:
        yield
        return
    words, current = environment["COMP_WORDS"].split("\n"), int(environment.get("COMP_CWORD", "0"))
    whole, place = joined(words, current)
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(whole), str(place)
    offered = io.StringIO()
    try:
        with redirect_stdout(offered):
            yield
    finally:
        is_whole = whole[place : place + 1] == words[current : current + 1]
        kept = "" if is_whole else standing(whole[place])
        sys.stdout.writelines(line.removeprefix(kept) for line in offered.getvalue().splitlines(keepends=True))


def joined(words: Sequence[str], current: int) -> tuple[list[str], int]:
    """The words as they were typed.

    Args:
        words: As bash has them.
        current: The place of the word that is being typed.

    Returns:
        The words, and the place of that one among them.
    """
    whole, place, behind_cut = list[str](), current, False
    for number, word in enumerate(words):
        is_cut = word != "" and not word.strip("=")
        if whole and word and (is_cut or behind_cut):
            whole[-1] += word
        else:
            whole.append(word)
        behind_cut = is_cut
        if number == current:
            place = len(whole) - 1
    return whole, place


def standing(typed: str) -> str:
    """What bash lets stand of a value that is being typed; the name of an option before it is none of the value."""
    value = typed.partition("=")[2] if typed.startswith("--") else typed
    return value[: value.rfind("=") + 1]
