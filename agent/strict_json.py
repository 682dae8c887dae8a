"""JSON as strangers may send it: well-formed in every respect, or rejected with its line."""

import json
import reprlib
from collections import Counter
from typing import NoReturn

from agent.definition import DocumentRejected, Finding
from reconcilers.reason import Reason


def read_json(text: str) -> object:
    """Parse a JSON text in which no field stands twice, no number is NaN or infinite and no character is cut in half.

    Raises:
        DocumentRejected: With one finding, MalformedJson or NotUtf8.
    """
    try:
        parsed: object = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
        json.dumps(parsed, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _rejected(Reason.MALFORMED_JSON, f"{error.msg} at column {error.colno}", error.lineno) from error
    except UnicodeEncodeError as error:
        why = "an escape such as \\ud800 is half a character; write the character itself, as UTF-8"
        raise _rejected(Reason.NOT_UTF8, why) from error
    except (ValueError, RecursionError) as error:
        raise _rejected(Reason.MALFORMED_JSON, str(error)) from error
    return parsed


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field {reprlib.repr(twice)} stands twice; keep one of them")
    return table


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _rejected(reason: Reason, message: str, line: int | None = None) -> DocumentRejected:
    return DocumentRejected(Finding(reason, message, "", line))
