"""The one exception of the memory model."""

_LONGEST_SHOWN = 80
_LONGEST_LINE = 400


class ModelError(Exception):
    """An input the model cannot be computed from.

    `field` names the field or argument, `message` says what is wrong with it and shows the value, `file` is the file
    it came from, if any. `str()` is always one line.
    """

    def __init__(self, field: str, message: str, file: str | None = None) -> None:
        super().__init__(field, message, file)
        self.field = _one_line(field)
        self.message = _one_line(message)
        self.file = None if file is None else _one_line(file)

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}: "
        return f"{where}{self.field}: {self.message}"


def show(value: object) -> str:
    """A value in at most 80 characters on one line, whatever it is: safe to put into a message."""
    if isinstance(value, int) and value.bit_length() > 128:
        # Python refuses to print integers beyond some thousand digits.
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        value = value[:_LONGEST_SHOWN]
    elif value is not None and not isinstance(value, (bool, int, float)):
        return f"a value of type {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def _one_line(text: str) -> str:
    if len(text) > _LONGEST_LINE:
        text = text[: _LONGEST_LINE - 3] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
