"""A pod as far as the injector looks at it. What is not named here is left to the API server, unread and unchanged."""

from collections.abc import Iterator, Mapping
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

Item = TypeVar("Item")
# The API server's own encoder leaves empty lists out, other clients write null.
_Null = BeforeValidator(lambda value: () if value is None else value)
_NullMapping = BeforeValidator(lambda value: {} if value is None else value)
Listed = Annotated[tuple[Item, ...], _Null]
Mapped = Annotated[Mapping[str, Item], _NullMapping]
Quantity = str | int | float
MAX_CONTAINERS = 256
"""More than any pod has; the API server itself sets no bound before it asks."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)


class EnvVar(_Part):
    name: str
    value: str | None = None
    value_from: object | None = None

    @property
    def literal(self) -> str | None:
        """The value where it stands in the pod; None where it comes from elsewhere."""
        return (self.value or "") if self.value_from is None else None


class EnvSource(_Part):
    prefix: str | None = None


class ContainerPort(_Part):
    container_port: int
    name: str | None = None
    protocol: str | None = None

    @property
    def is_tcp(self) -> bool:
        return self.protocol in {None, "", "TCP"}


class Claim(_Part):
    name: str
    request: str | None = None


class Resources(_Part):
    requests: Mapped[Quantity] = Field(default_factory=dict)
    limits: Mapped[Quantity] = Field(default_factory=dict)
    claims: Listed[Claim] = ()


class VolumeMount(_Part):
    name: str
    mount_path: str
    sub_path: str | None = None
    sub_path_expr: str | None = None


class Container(_Part):
    name: str
    image: str | None = None
    command: Listed[str] = ()
    args: Listed[str] = ()
    env: Listed[EnvVar] = ()
    env_from: Listed[EnvSource] = ()
    ports: Listed[ContainerPort] = ()
    resources: Resources | None = None
    volume_mounts: Listed[VolumeMount] = ()

    @property
    def claims(self) -> tuple[Claim, ...]:
        return self.resources.claims if self.resources is not None else ()

    @property
    def literals(self) -> dict[str, str | None]:
        """Its variables; None: the value comes from elsewhere, or refers to others. Of equal names the last holds."""
        return {each.name: None if each.literal is None or "$(" in each.literal else each.literal for each in self.env}


class Volume(_Part):
    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def kind(self) -> str | None:
        """`emptyDir`, `persistentVolumeClaim`, ...; None where the pod does not say, which means an emptyDir."""
        return next((kind for kind, source in (self.model_extra or {}).items() if source is not None), None)


class Os(_Part):
    name: str


class PodSpec(_Part):
    containers: Listed[Container] = Field((), max_length=MAX_CONTAINERS)
    init_containers: Listed[Container] = Field((), max_length=MAX_CONTAINERS)
    volumes: Listed[Volume] = ()
    host_network: bool | None = None
    runtime_class_name: str | None = None
    resources: Resources | None = None
    restart_policy: str | None = None
    os: Os | None = None

    def everyone(self) -> Iterator[Container]:
        yield from self.init_containers
        yield from self.containers


class Metadata(_Part):
    labels: Mapped[str] = Field(default_factory=dict)
    annotations: Mapped[str] = Field(default_factory=dict)


class Pod(_Part):
    metadata: Metadata = Field(default_factory=Metadata)
    spec: PodSpec
