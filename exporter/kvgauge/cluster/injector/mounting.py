"""The engine's model, mounted into the sidecar too: read-only, from the engine's own volume, never a second claim."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from kvgauge.cluster.injector.pods import Volume, VolumeMount

ASIDE = "/mnt/kvgauge/model"
"""Where a volume goes whose own place in the engine's container means something else in ours."""
# Folders that our image is made of, or whose contents only root may reach.
_OCCUPIED = (
    *("/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var/run"),
    *("/opt/kvgauge", "/mnt/kvgauge", "/var/lib/kvgauge"),
)
# A model is in none of these, and what is in them is nobody else's business.
_PRIVATE = frozenset({"secret", "projected", "configMap", "downwardAPI"})


@dataclass(frozen=True, slots=True)
class ModelView:
    """What the sidecar gets to see of the model. None: nothing."""

    mount: VolumeMount | None = None
    """Volume, place and sub-path in the sidecar; it is mounted read-only."""
    model: str | None = None
    """Path or id to look for."""
    hub_cache: str | None = None
    """Folder of the Hugging Face cache, in the sidecar."""


def view_model(
    model: str | None, hub_cache: str | None, mounts: Sequence[VolumeMount], volumes: Sequence[Volume]
) -> ModelView:
    """`mounts` are the engine's. A path is looked for in them, an id in the cache that lies in one of them."""
    is_path = model is not None and model.startswith("/")
    place = model if is_path else hub_cache
    mount = _holding(place, mounts, volumes) if place is not None else None
    if place is None or mount is None:
        return ModelView(model=model)
    target = mount.mount_path.rstrip("/")
    if _is_occupied(target):
        target = ASIDE
    inside = posixpath.relpath(posixpath.normpath(place), posixpath.normpath(mount.mount_path))
    found = posixpath.normpath(posixpath.join(target, inside))
    ours = VolumeMount(name=mount.name, mount_path=target, sub_path=mount.sub_path)
    if is_path:
        return ModelView(ours, found, None)
    return ModelView(ours, model, found)


def _holding(place: str, mounts: Sequence[VolumeMount], volumes: Sequence[Volume]) -> VolumeMount | None:
    """The mount that `place` lies in, the innermost of several. None where that is no volume for models, or where its
    sub-path is made of variables that only the engine has."""
    path = posixpath.normpath(place)
    around = [each for each in mounts if _contains(posixpath.normpath(each.mount_path), path)]
    if not around:
        return None
    mount = max(around, key=lambda each: len(posixpath.normpath(each.mount_path)))
    kinds = [each.kind for each in volumes if each.name == mount.name]
    if not kinds or kinds[0] in _PRIVATE or mount.sub_path_expr:
        return None
    return mount


def _contains(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_occupied(target: str) -> bool:
    path = posixpath.normpath(target or "/")
    return any(_contains(path, each) or _contains(each, path) for each in _OCCUPIED)
