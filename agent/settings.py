"""The agent's settings: one TOML file and the environment, checked into one frozen value.

The environment wins over the file, option by option: `TAPSTER_BROKER__PORT=8883` is `port` under `[broker]`.
Lists are comma-separated there. What neither sets has the default that stands here, and `deploy/tapster.toml`
shows them all.
"""

import os
import re
import reprlib
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from agent.options import FILE_VARIABLE, PREFIX, Option, options, unknown_keys, unknown_variables
from agent.setting_kinds import LabelName, LabelText, Name, from_commas, from_pairs, no_builtin
from agent.setting_sections import (
    BlktapSettings,
    BrokerSettings,
    ControllerSettings,
    ImageSettings,
    LimitSettings,
    LogSettings,
    MetricsSettings,
    PathSettings,
    PolicySettings,
    TrustSettings,
)

DEFAULT_FILE = Path("/etc/tapster/tapster.toml")


class SettingsError(Exception):
    """The settings can't be used. The message lists every problem, one a line, with what would be right."""


def host_name() -> str:
    """This machine's name in lower case, with `-` for what can't stand in a topic level."""
    return re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()).lstrip(".-")[:63]


class Settings(BaseSettings):
    """All settings. Make it with `load`, or with keyword arguments that stand for the file."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        enable_decoding=False,
        validate_default=True,
    )

    host: Name = Field(
        default_factory=host_name,
        description="This host's name on the bus, and its certificate's CN. Not set: its hostname.",
        examples=["db1"],
    )
    fleet: Name = Field("default", description="The fleet that the host belongs to; a level of every topic.")
    labels: Annotated[dict[LabelName, LabelText], BeforeValidator(from_pairs)] = Field(
        {}, description="What selectors of `tapster rollout -l` match, for example site and rack."
    )
    groups: Annotated[tuple[Name, ...], BeforeValidator(from_commas), AfterValidator(no_builtin)] = Field(
        (), description="Groups whose documents the host follows. Every host is in 'all' besides."
    )
    broker: BrokerSettings = Field(BrokerSettings(), description="The MQTT broker and the session with it.")
    paths: PathSettings = Field(PathSettings(), description="Where the agent keeps things.")
    images: ImageSettings = Field(ImageSettings(), description="What of the host guests may be given.")
    limits: LimitSettings = Field(
        LimitSettings(), description="What documents may cost; one beyond a limit is rejected."
    )
    controller: ControllerSettings = Field(ControllerSettings(), description="How the work on disks is paced.")
    policy: PolicySettings = Field(PolicySettings(), description="What to do where there is a choice.")
    blktap: BlktapSettings = Field(BlktapSettings(), description="User-space block servers, one process a disk.")
    trust: TrustSettings = Field(TrustSettings(), description="Whose documents count.")
    metrics: MetricsSettings = Field(MetricsSettings(), description="Metrics for Prometheus.")
    log: LogSettings = Field(LogSettings(), description="The log, on standard error or in the journal.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then what `load` read from the file, and nothing else."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


def load(path: Path | None = None) -> Settings:
    """Read the settings from the file and the environment.

    Args:
        path: The TOML file. None: what TAPSTER_CONFIG names, or else /etc/tapster/tapster.toml, which may be
            missing.

    Raises:
        SettingsError: The file can't be read, or it or the environment has an unknown key or a wrong value.
    """
    chosen = _chosen(path)
    file = chosen or DEFAULT_FILE
    table = _read(file, optional=chosen is None)
    problems = [f"{name} (in {file}): {why}" for name, why in unknown_keys(Settings, table)]
    problems += [f"{name} (in the environment): {why}" for name, why in unknown_variables(Settings, os.environ)]
    try:
        settings = Settings(**{key: value for key, value in table.items() if key in Settings.model_fields})
    except ValidationError as error:
        problems += _wrong_values(error, table, file)
    if problems:
        raise SettingsError("\n  ".join(["the settings can't be used:", *problems]))
    return settings


def file_of(path: Path | None = None) -> Path:
    """The file that `load` reads for this argument."""
    return _chosen(path) or DEFAULT_FILE


def _chosen(path: Path | None) -> Path | None:
    return path or (Path(named) if (named := os.environ.get(FILE_VARIABLE)) else None)


def _read(file: Path, *, optional: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise SettingsError(f"{file}: there is no such file; create it, or name another one with --config") from None
    except OSError as error:
        raise SettingsError(f"{file}: can't be read: {error.strerror}; check its owner and mode") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file}: is not TOML: {error}") from error


def _wrong_values(error: ValidationError, table: dict[str, Any], file: Path) -> Iterator[str]:
    known = {str(option): option for option in options(Settings)}
    for problem in error.errors(include_url=False):
        if problem["type"] == "extra_forbidden":
            continue  # named already, with the nearest known key
        place = [str(part) for part in problem["loc"]]
        parents = (".".join(place[:length]) for length in range(len(place), 0, -1))
        option = next((known[parent] for parent in parents if parent in known), None)
        why = str(problem.get("ctx", {}).get("error", ""))
        if option is None:
            yield f"{'.'.join(place)} (in {file} or the environment): {why or 'is a section; set its options'}"
        else:
            value = reprlib.repr(problem["input"])
            must = f"must be {option.allowed}" + (f" ({why})" if why else "")
            yield f"{'.'.join(place)} = {value} ({_origin(option, table, file)}): {must}"


def _origin(option: Option, table: dict[str, Any], file: Path) -> str:
    for variable, text in os.environ.items():
        if text and (variable.upper() == option.variable or variable.upper().startswith(f"{option.variable}__")):
            return f"{variable} in the environment"
    value: Any = table
    for part in option.path:
        value = value.get(part) if isinstance(value, dict) else None
    return "its default on this host" if value is None else f"in {file}"
