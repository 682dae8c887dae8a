"""A host whose kernel is a dictionary: everything else of the agent on it is the real one.

It answers at once and from memory, so what a fleet costs is what agents and broker cost. It can be made to fail, as a
host that has run out of loop devices.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from reconcilers.actual import Actual, Attached, FileId, Source, SourceKind
from reconcilers.errors import DiskError
from reconcilers.holders import DeviceHolders
from reconcilers.honour import possible
from reconcilers.look import Look, Orphan
from reconcilers.plan import Adopt, Attach, Detach, Keep, Nothing, Refuse, Replace, Step, plan
from reconcilers.reason import Reason
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format
from reconcilers.stable_path import StablePaths

SIZE = 10 << 30


class NothingHappens:
    """Stands in for `reconcilers.host_watch.HostWatch`: behind the agent's back a dictionary does not change."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        yield

    async def stalls(self) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError


class SimulatedHost:
    """Stands in for `reconcilers.host.Host`."""

    def __init__(self, runtime: Path) -> None:
        self.failing = False
        self.watch = NothingHappens()
        self.paths = StablePaths(runtime / "disks")
        self._disks: dict[DiskKey, Attached] = {}
        self._count = 0

    @contextmanager
    def owned_runtime(self) -> Iterator[None]:
        yield

    async def close(self) -> None:
        pass

    async def survey(self, _known: set[DiskKey]) -> tuple[set[DiskKey], list[Orphan]]:
        return set(self._disks), []

    async def observe(self, key: DiskKey, source_path: str | None) -> Actual:
        return self._actual(key, source_path)

    async def attached(self, key: DiskKey) -> Attached | None:
        return self._disks.get(key)

    async def tell_of_release(self, key: DiskKey, device_path: str, holders: DeviceHolders | None) -> None:
        pass

    def tell_of_writer(self, key: DiskKey) -> None:
        pass

    async def look(self, key: DiskKey, desired: DiskSpec | None, *, begin: Callable[[Step], None]) -> Look:
        source = desired.source if desired else None
        actual = self._actual(key, source)
        step = plan(desired, actual)
        if not isinstance(step, Attach):
            return Look(actual, step)
        begin(step)
        await self.apply(step, key)
        actual = self._actual(key, source)
        return Look(actual, plan(desired, actual), done=step)

    async def apply(self, step: Step, key: DiskKey) -> str | None:
        match step:
            case Attach(spec) | Adopt(spec) | Replace(spec):
                self._attach(spec)
            case Detach():
                self._disks.pop(key, None)
            case Nothing() | Keep() | Refuse():
                pass
            case _:
                raise AssertionError(f"the fleet's definitions ask for no {step}")
        return None

    def _actual(self, key: DiskKey, source_path: str | None) -> Actual:
        return Actual(_source(source_path) if source_path else None, self._disks.get(key))

    def _attach(self, spec: DiskSpec) -> None:
        if self.failing:
            raise DiskError(Reason.NO_LOOP_DEVICE, "the simulated kernel has no free loop device")
        self._count += 1
        assert spec.source
        self._disks[spec.key] = Attached(
            backend=Backend.LOOP,
            format=Format.RAW,
            identity=_source(spec.source).identity,
            device_path=f"/dev/loop{self._count}",
            diskseq=self._count,
            size_bytes=SIZE,
            logical_block_size=512,
            read_only=spec.read_only,
            tuning=possible(spec.tuning, Backend.LOOP),
            asked=spec.tuning,
            slice_offset=0,
            slice_size=None,
            server="simulated kernel",
            server_alive=True,
            linked=True,
        )


@lru_cache  # of the images of the last pushes, which are the same for all hosts
def _source(path: str) -> Source:
    return Source(kind=SourceKind.FILE, identity=FileId(1, hash(path) & 0xFFFFFFFF), size_bytes=SIZE)
