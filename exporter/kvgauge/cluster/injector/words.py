"""What a container runs, as words. Nothing is executed and nothing is guessed: a word that only a shell or the kubelet
could tell is None, and a script that is more than plain commands is not read at all."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

Word = str | None

MAX_WORDS = 512
MAX_SCRIPT_LENGTH = 8 * 1024
MAX_LINES = 256

_REFERENCE = re.compile(r"\$\$|\$\(([^()$]*)\)")
_SHELLS = frozenset({"sh", "bash", "ash", "dash", "zsh"})
# What a shell would replace: a variable, a command's output, a pattern, a home.
_NEEDS_A_SHELL = re.compile(r"[$`*?~]|\[|\{")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_OPERATOR = re.compile(r"[;&|()<>]+")


def expanded(text: str, literals: Mapping[str, str | None]) -> Word:
    """`text` with `$(NAME)` and `$$` as the kubelet replaces them; None where a name's value is not known. A name that
    the pod does not set is left as it stands, which is the kubelet's rule too."""
    if len(text) > MAX_SCRIPT_LENGTH:
        return None
    parts: list[str] = []
    position = length = 0
    for match in _REFERENCE.finditer(text):
        if match[1] is None:
            new = "$"
        elif match[1] in literals:
            value = literals[match[1]]
            if value is None:
                return None
            new = value
        else:
            new = match[0]
        parts += [text[position : match.start()], new]
        position = match.end()
        length += len(new)
        if length > MAX_SCRIPT_LENGTH:
            return None
    return "".join([*parts, text[position:]])


def words_of(command: Sequence[str], args: Sequence[str], literals: Mapping[str, str | None]) -> tuple[Word, ...]:
    """Command and arguments as the container gets them, MAX_WORDS at most."""
    return tuple(expanded(text, literals) for text in [*command, *args][:MAX_WORDS])


def commands_in(words: Sequence[Word]) -> Iterator[tuple[Word, ...]]:
    """The command itself, or those of the script that it has a shell run. The words of a script that need a shell to be
    told are None."""
    if not words or basename(words[0]) not in _SHELLS:
        yield tuple(words)
        return
    script = _script(words)
    if script is not None:
        yield from _simple_commands(script)


def basename(word: Word) -> str:
    return "" if word is None else word.rpartition("/")[2]


def _script(words: Sequence[Word]) -> str | None:
    """What stands after -c, in whatever other options it is hidden (-lc, -euxo pipefail -c)."""
    rest = iter(words[1:])
    has_c = False
    for word in rest:
        if word is None:
            return None
        if word[:1] not in {"-", "+"}:
            return word if has_c else None
        if not word.startswith("--"):
            has_c = has_c or "c" in word
            if "o" in word:
                next(rest, None)
    return None


def _simple_commands(script: str) -> Iterator[tuple[Word, ...]]:
    # The lines of a here-document look like commands and are none.
    if len(script) > MAX_SCRIPT_LENGTH or "<<" in script:
        return
    lines = script.replace("\\\n", " ").splitlines()
    if len(lines) > MAX_LINES:
        return
    found: list[tuple[Word, ...]] = []
    try:
        for line in lines:
            found += _commands_of_line(line)
    except ValueError:
        # A quotation over several lines: what is inside and what is not cannot be told line by line.
        return
    yield from found


def _commands_of_line(line: str) -> list[tuple[Word, ...]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
    lexer.whitespace_split = True
    found: list[tuple[Word, ...]] = []
    command: list[Word] = []
    tokens = iter(lexer)
    for token in tokens:
        if not _OPERATOR.fullmatch(token):
            if command or not _ASSIGNMENT.match(token):
                command.append(None if _NEEDS_A_SHELL.search(token) else token)
        elif "<" in token or ">" in token:
            # The file that follows is no argument.
            next(tokens, None)
        else:
            found.append(tuple(command))
            command = []
    return [each for each in [*found, tuple(command)] if each]


def options_in(words: Sequence[Word]) -> dict[str, Word]:
    """Options by name, underscores as dashes, of equal ones the last: `--name value`, `--name=value`. A switch has the
    value ""; None is a value that is not known."""
    found: dict[str, Word] = {}
    for number, word in enumerate(words):
        if word is None or not _is_option(word):
            continue
        name, has_value, value = word.partition("=")
        following = words[number + 1] if number + 1 < len(words) else ""
        if not has_value:
            value_or_none: Word = "" if following is not None and _is_option(following) else following
        else:
            value_or_none = value
        found[name.replace("_", "-")] = value_or_none
    return found


def _is_option(word: str) -> bool:
    return len(word) > 1 and word.startswith("-") and not word[1:2].isdigit()
