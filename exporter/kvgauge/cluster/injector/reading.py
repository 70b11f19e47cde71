"""What a pod's own spec tells of its engine: which container it is, its kind, port, model and options.

What is not understood is left out: the sidecar asks the engine for most of it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvgauge.cluster.injector.pods import Container, PodSpec
from kvgauge.cluster.injector.profiles import PROFILES, UNKNOWN, Profile, profile_of
from kvgauge.cluster.injector.words import Word, basename, commands_in, options_in, words_of

MODEL = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._/@:+=, -]{0,511}")
"""A path or id: no control characters, and nothing that a kubelet would replace."""
_COUNT = re.compile(r"[0-9]{1,9}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_COUNTS = frozenset(
    {"tp", "pp", "max_num_seqs", "max_num_batched_tokens", "engine_capacity_tokens", "engine_max_model_len"}
    | {"engine_parallel"}
)
# More containers than a pod of engines has; a reader's time for one pod is bounded by it.
_MAX_LOOKED_AT = 16
# Flags of the sidecar that take no value.
_PLAIN_SWITCHES = frozenset({"enforce_eager"})
# What may stand before an engine's command without changing what it means.
_RUNNERS = frozenset(
    {"exec", "env", "nohup", "nice", "numactl", "time", "tini", "dumb-init", "stdbuf", "mpirun", "nsys"}
    | {"opentelemetry-instrument"}
)
_PYTHON = re.compile(r"python[0-9.]*")
_WHOLE_GPUS = ("nvidia.com/gpu", "nvidia.com/gpu.shared")
_MIG_PREFIX = "nvidia.com/mig-"
_OTHER_GPUS = ("amd.com/gpu", "gpu.intel.com/", "habana.ai/gaudi")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Fa-f/-]{8,80}")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """One container as an engine. None: not told."""

    kind: str | None = None
    port: int | None = None
    model: str | None = None
    hub_cache: str | None = None
    """Folder of a Hugging Face cache that it was told to use."""
    settings: Mapping[str, str | bool] = field(default_factory=dict)
    """The sidecar's settings that follow from its options."""
    gpu_count: int | None = None
    """GPUs, or MIG instances, that the device plugin gives it."""
    gpu_uuids: tuple[str, ...] = ()
    """Those that its NVIDIA_VISIBLE_DEVICES names."""


@dataclass(frozen=True, slots=True)
class _Command:
    """An engine's own words, those of the program left out."""

    profile: Profile
    words: tuple[Word, ...]


def find_engine(spec: PodSpec, ours: frozenset[str]) -> Container | None:
    """The container that is the engine; None where that cannot be told. `ours` are containers that are none: our own.

    The one that has GPUs; of several, or of none, the one whose command or image is an engine's; else the only one.
    """
    those = [each for each in spec.containers if each.name not in ours]
    with_gpu = [each for each in those if has_gpu(each)]
    candidates = with_gpu or those
    if len(candidates) == 1:
        return candidates[0]
    if len(candidates) > _MAX_LOOKED_AT:
        return None
    engines = [each for each in candidates if _profile(each) is not UNKNOWN]
    return engines[0] if len(engines) == 1 else None


def has_gpu(container: Container) -> bool:
    limits = container.resources.limits if container.resources is not None else {}
    names = (*_WHOLE_GPUS, _MIG_PREFIX, *_OTHER_GPUS)
    return bool(container.claims) or any(name.startswith(names) for name in limits)


def read_engine(container: Container, kind: str | None = None) -> EngineFacts:
    """What the container tells. `kind` is what somebody stated; None leaves it to be found."""
    literals = container.literals
    command = _command(container)
    profile = profile_of(kind) if kind is not None else command.profile
    words = command.words
    options = options_in(words)
    return EngineFacts(
        kind=kind or profile.kind,
        port=_port(container, profile, options, literals),
        model=_model(profile, words, options, literals),
        hub_cache=_hub_cache(profile, options, literals),
        settings=_settings(profile, options, literals),
        gpu_count=_gpu_count(container),
        gpu_uuids=_gpu_uuids(literals.get("NVIDIA_VISIBLE_DEVICES")),
    )


def _profile(container: Container) -> Profile:
    return _command(container).profile


def _command(container: Container) -> _Command:
    """By the command that is run, else by the image, whose own entry point then takes the arguments."""
    words = words_of(container.command, container.args, container.literals)
    found = [found for words in commands_in(words) if (found := _recognised(words)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        same = all(each.profile is found[0].profile for each in found)
        return _Command(found[0].profile if same else UNKNOWN, ())
    by_image = _by_image(container.image or "")
    if by_image is not None and not container.command:
        return _Command(by_image, _past_subcommand(by_image, words))
    # A script of the user's own: that it runs the image's engine is likely, with what options is not known.
    return _Command(by_image or UNKNOWN, () if by_image is not None else words)


def _past_subcommand(profile: Profile, words: tuple[Word, ...]) -> tuple[Word, ...]:
    """Where the image's entry point is the bare program (`vllm`), the arguments begin with its subcommand."""
    for program in profile.programs:
        rest = tuple(program[1:])
        if rest and words[: len(rest)] == rest:
            return words[len(rest) :]
    return words


def _recognised(words: Sequence[Word]) -> _Command | None:
    if not words:
        return None
    starts = range(len(words)) if basename(words[0]) in _RUNNERS else range(1)
    for start in starts:
        for profile in PROFILES:
            for program in profile.programs:
                end = _match(words, start, program)
                if end is not None:
                    return _Command(profile, tuple(words[end:]))
    return None


def _match(words: Sequence[Word], start: int, program: Sequence[str]) -> int | None:
    """Where the program's own words end, if they stand at `start`."""
    name = basename(words[start])
    if program[0] == "python":
        if not _PYTHON.fullmatch(name):
            return None
        # Python's own switches (-u, -O) come before -m.
        while start + 1 < len(words) and words[start + 1] in {"-u", "-O", "-OO", "-s", "-B"}:
            start += 1
    elif name != program[0]:
        return None
    rest = tuple(program[1:])
    return start + 1 + len(rest) if tuple(words[start + 1 : start + 1 + len(rest)]) == rest else None


def _by_image(image: str) -> Profile | None:
    name = image.partition("@")[0].lower()
    repository, colon, tag = name.rpartition(":")
    # A colon before a slash is a registry's port.
    if colon and "/" not in tag:
        name = repository
    first, slash, rest = name.partition("/")
    path = rest if slash and ("." in first or ":" in first) else name
    return next((each for each in PROFILES if any(part in f"/{path}" for part in each.images)), None)


def _port(
    container: Container, profile: Profile, options: Mapping[str, Word], literals: Mapping[str, str | None]
) -> int | None:
    stated = [options[name] for name in profile.port_options if name in options]
    stated += [literals[name] for name in profile.port_variables if name in literals]
    for value in stated:
        # OLLAMA_HOST is an address: what follows its last colon.
        number = _port_number((value or "").rpartition(":")[2])
        if number is not None:
            return number
    listening = [each for each in container.ports if each.is_tcp]
    numbers = [each.container_port for each in listening]
    if profile.port in numbers:
        return profile.port
    for name in profile.port_names:
        for each in listening:
            if each.name == name:
                return each.container_port
    # An engine that was told no other port, and whose metrics are not where it serves, keeps its own default.
    if len(numbers) == 1 and "http" in profile.port_names:
        return numbers[0]
    return profile.port


def _port_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536 else None


def _model(
    profile: Profile, words: Sequence[Word], options: Mapping[str, Word], literals: Mapping[str, str | None]
) -> str | None:
    for name in profile.model_options:
        if name in options:
            return _model_name(options[name])
    if profile.model_follows and words and words[0] is not None and not words[0].startswith("-"):
        return _model_name(words[0])
    return next((_model_name(literals[name]) for name in profile.model_variables if name in literals), None)


def _model_name(value: Word) -> str | None:
    return value if value and MODEL.fullmatch(value) else None


def _hub_cache(profile: Profile, options: Mapping[str, Word], literals: Mapping[str, str | None]) -> str | None:
    stated = [options[name] for name in profile.cache_options if name in options]
    stated += [literals[name] for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") if name in literals]
    if "HF_HOME" in literals:
        home = literals["HF_HOME"]
        stated.append(f"{home.rstrip('/')}/hub" if home else None)
    found = stated[0] if stated else profile.hub_cache
    return found if found and found.startswith("/") and MODEL.fullmatch(found) else None


def _settings(
    profile: Profile, options: Mapping[str, Word], literals: Mapping[str, str | None]
) -> dict[str, str | bool]:
    found: dict[str, str | bool] = {}
    for setting, names in profile.options.items():
        stated = [options[name] for name in names if name in options]
        variable = profile.variables.get(setting)
        if not stated and variable is not None and variable in literals:
            stated = [literals[variable]]
        value = _setting_value(setting, stated[0] if stated else None)
        if value is not None:
            found[setting] = value
    for setting, variable in profile.variables.items():
        value = _setting_value(setting, literals.get(variable)) if setting not in profile.options else None
        if value is not None:
            found[setting] = value
    for setting, names in profile.switches.items():
        if any(options.get(name, "no") not in {"no", "false", "False", "0", None} for name in names):
            found[setting] = True if setting in _PLAIN_SWITCHES else "true"
    return found


def _setting_value(setting: str, value: Word) -> str | None:
    if value is None:
        return None
    pattern = _COUNT if setting in _COUNTS else _WORD
    # 0 means "decide yourself" wherever an engine takes it.
    return value if pattern.fullmatch(value) and value.strip("0") else None


def _gpu_count(container: Container) -> int | None:
    limits = container.resources.limits if container.resources is not None else {}
    counts = [str(value) for name, value in limits.items() if name in _WHOLE_GPUS or name.startswith(_MIG_PREFIX)]
    # With claims beside it the number is only a part.
    if container.claims or not counts or not all(_COUNT.fullmatch(count) for count in counts):
        return None
    return sum(int(count) for count in counts) or None


def _gpu_uuids(value: str | None) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in (value or "")[:4096].split(","))
    return parts if all(_UUID.fullmatch(part) for part in parts) else ()
