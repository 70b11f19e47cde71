"""RFC 6902 as strictly as the API server takes it, for the one operation that the injector uses; and what "nothing of
the user's is changed" means."""

import copy
from typing import Any

Json = Any


def applied(document: Json, patch: list[dict[str, Any]]) -> Json:
    """A new document. Raises where an operation cannot be carried out."""
    result = copy.deepcopy(document)
    for operation in patch:
        assert set(operation) == {"op", "path", "value"}
        assert operation["op"] == "add"
        *parents, last = _tokens(operation["path"])
        target = result
        for token in parents:
            target = target[_index(target, token)] if isinstance(target, list) else target[token]
        if isinstance(target, list):
            position = len(target) if last == "-" else _index(target, last, past_end=1)
            target.insert(position, copy.deepcopy(operation["value"]))
        else:
            assert isinstance(target, dict), operation["path"]
            target[last] = copy.deepcopy(operation["value"])
    return result


def _tokens(path: str) -> list[str]:
    assert path.startswith("/")
    return [token.replace("~1", "/").replace("~0", "~") for token in path[1:].split("/")]


def _index(target: list[Any], token: str, past_end: int = 0) -> int:
    assert token.isdecimal()
    assert token == "0" or not token.startswith("0")
    assert int(token) < len(target) + past_end
    return int(token)


def lost(before: Json, after: Json, where: str = "") -> list[str]:
    """Places at which something of `before` is changed, moved or gone. Lists may only grow at their end; what was
    empty or null was nothing."""
    if before is None or before in ({}, []):
        return []
    if isinstance(before, dict):
        if not isinstance(after, dict):
            return [where]
        return [
            place
            for key, value in before.items()
            for place in ([f"{where}/{key}"] if key not in after else lost(value, after[key], f"{where}/{key}"))
        ]
    if isinstance(before, list):
        if not isinstance(after, list) or len(after) < len(before):
            return [where]
        return [
            place for number, value in enumerate(before) for place in lost(value, after[number], f"{where}/{number}")
        ]
    return [] if type(before) is type(after) and before == after else [where]
