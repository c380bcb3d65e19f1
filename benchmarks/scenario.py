"""Which commands run in which order: one tool, one item, one round.

    add           the first version, into an empty store
    status        nothing changed
    push-*        to a local disk, to S3
    add-edit      the second version
    push-edit-*   again
    back, forth   to the first version and to the second, Git's part included
    pull-*        the second version into a fresh clone without data
    status-edit   after 1 % of a folder's files changed (of a file: after it did)

After every command that writes the item, its bytes are compared with the cache, and a difference counts as a failure
of the tool. Before every command dirty pages are written out, so that nobody pays for the step before.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.measure import Command, Cost, Holding, StepFailed, holding, run
from benchmarks.results import Failure, Sample
from benchmarks.s3 import CountingS3, Traffic
from benchmarks.tools import BUCKET, Place, Tool, new_place
from benchmarks.workloads import Cached, CachedFile, Item

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one scenario gave. A tool that failed has the samples up to there."""

    samples: list[Sample]
    failures: list[Failure]


def play(
    item: Item, cached: Cached, tool: Tool, *, number: int, folder: str, remotes: tuple[str, ...], say: Say
) -> Outcome:
    """Run all that `tool` can do with `item` in the new folder `folder`, and remove it."""
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        env: dict[str, str] = {}
        server: CountingS3 | None = None
        wanted = tuple(r for r in remotes if r in tool.remotes) if item.remotes else ()
        os.mkdir(folder)
        if "s3" in wanted:
            server = CountingS3(os.path.join(folder, "s3"))
            stack.enter_context(server)
            server.create_bucket(BUCKET)
            # The home is empty, so these two, which lead to /dev/null, are not needed; DVC stumbles over them.
            hidden = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
            env = {name: value for name, value in server.env.items() if name not in hidden}
        place = new_place(os.path.join(folder, "place"), item.path, extra_env=env)
        scene = _Scene(item, cached, tool, place, server, number, say)
        try:
            scene.play(wanted)
        except (StepFailed, OSError) as problem:
            scene.failed(str(problem))
        return Outcome(samples=scene.samples, failures=scene.failures)


def start_up(tool: Tool, *, number: int, folder: str, times: int) -> Outcome:
    """Time the smallest command and, where there is one, the status of an empty repository."""
    os.mkdir(folder)
    try:
        place = new_place(os.path.join(folder, "place"), "nothing", extra_env={})
        scene = _Scene(_START, None, tool, place, None, number, lambda _: None)
        try:
            tool.prepare(place)
            for verb, command in (("version", tool.start(place)), ("empty-status", tool.status(place))):
                if command is not None:
                    run(command, scratch=place.scratch)  # the first one compiles bytecode
                    for _ in range(times):
                        scene.step(verb, command)
        except (StepFailed, OSError) as problem:
            scene.failed(str(problem))
        return Outcome(samples=scene.samples, failures=scene.failures)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_START = Item(name="start", title="start-up", path="nothing", kind=CachedFile)


class _Scene:
    def __init__(
        self,
        item: Item,
        cached: Cached | None,
        tool: Tool,
        place: Place,
        server: CountingS3 | None,
        number: int,
        say: Say,
    ) -> None:
        self.item, self._cached, self.tool, self.place = item, cached, tool, place
        self.server, self.number, self.say = server, number, say
        self.samples: list[Sample] = []
        self.failures: list[Failure] = []
        self._verb = "prepare"
        self.files = cached.files(0) if cached is not None else 0

    @property
    def cached(self) -> Cached:
        assert self._cached is not None
        return self._cached

    def failed(self, what: str) -> None:
        self.failures.append(
            Failure(item=self.item.name, verb=self._verb, tool=self.tool.name, round=self.number, what=what)
        )
        self.say(f"  {self.tool.name} {self._verb}: FAILED: {what}")

    def play(self, remotes: tuple[str, ...]) -> None:
        tool, place, cached = self.tool, self.place, self.cached
        tool.prepare(place)
        for name in remotes:
            url = place.remote if name == "local" else f"s3://{BUCKET}/{tool.name}"
            tool.add_remote(place, name, url, self.server.endpoint_url if name == "s3" and self.server else "")
        cached.place(place.target, 0)
        self._add("add", 0)
        if not self.item.edits:
            return
        self._status("status")
        self._push("push", remotes)
        if self.item.versions > 2:
            self._series()
            return
        cached.edit(place.target, 1)
        self._add("add-edit", 1)
        self._push("push-edit", remotes)
        self._switch("back", 0)
        self._switch("forth", 1)
        for name in remotes:
            self._pull(name)
        # Last, because a status of Git LFS stores what changed and would take work off the add.
        cached.revert_part(place.target)
        self._status("status-edit")

    def _series(self) -> None:
        for version in range(1, self.item.versions):
            self.cached.edit(self.place.target, version)
            self._add("add-next", version)
        self._switch("back", 0)
        self._switch("forth", self.item.versions - 1)

    def _add(self, verb: str, version: int) -> None:
        folders = self.tool.store_folders(self.place)
        self.step(verb, self.tool.add(self.place, version), folders)
        # Data, not what the tool keeps in Git: `add` must not have touched the user's bytes.
        self._check(self.place.target, version)
        self.tool.keep(self.place, version)

    def _status(self, verb: str) -> None:
        command = self.tool.status(self.place)
        if command is not None:
            self.step(verb, command)

    def _push(self, verb: str, remotes: tuple[str, ...]) -> None:
        for name in remotes:
            command = self.tool.push(self.place, name)
            if command is not None:
                self.step(f"{verb}-{name}", command, (self.place.remote,) if name == "local" else (), traffic=name)

    def _switch(self, verb: str, version: int) -> None:
        command = self.tool.switch(self.place, version)
        if command is not None:
            self.step(verb, command)
            self._check(self.place.target, version)

    def _pull(self, name: str) -> None:
        self._verb = f"pull-{name}"
        tool, place = self.tool, self.place
        tool.clone(place, name)
        command = tool.pull(place, name)
        if command is not None:
            self.step(f"pull-{name}", command, traffic=name)
            self._check(os.path.join(place.clone, place.path), self.item.versions - 1)
        shutil.rmtree(place.clone)

    def _check(self, target: str, version: int) -> None:
        wrong = self.cached.differences(target, version, extra_allowed=self.tool.leaves_extra)
        if wrong:
            raise StepFailed(f"wrong bytes: {wrong}")

    def step(self, verb: str, command: Command, folders: tuple[str, ...] = (), *, traffic: str = "") -> None:
        """Measure one command and keep the sample."""
        self._verb = verb
        counted = self.server if traffic == "s3" else None
        before = holding(*folders)
        seen = counted.traffic(BUCKET) if counted else Traffic()
        os.sync()
        cost = run(command, scratch=self.place.scratch)
        started = time.perf_counter()
        os.sync()
        sync_s = time.perf_counter() - started
        grown = holding(*folders) - before if folders else Holding()
        moved = counted.traffic(BUCKET) - seen if counted else Traffic()
        self.samples.append(
            Sample(
                item=self.item.name,
                verb=verb,
                tool=self.tool.name,
                round=self.number,
                wall_s=cost.wall_s,
                user_s=cost.user_s,
                system_s=cost.system_s,
                rss_bytes=cost.rss_bytes,
                sync_s=sync_s,
                stored_bytes=grown.size_bytes if folders else None,
                stored_files=grown.files if folders else None,
                moved_bytes=moved.received_bytes + moved.sent_bytes if counted else None,
                requests=moved.requests if counted else None,
                told_bytes=_told(cost),
                files=self.files,
            )
        )
        self.say(
            f"  {self.tool.name:7} {verb:14} {cost.wall_s:8.2f} s wall {cost.user_s + cost.system_s:7.2f} s cpu"
            f" {cost.rss_bytes / 1e6:6.0f} MB memory"
            + (f" {grown.size_bytes / 1e6:9.1f} MB stored" if folders else "")
            + (f" {moved.requests:6} requests" if counted else "")
        )


def _told(cost: Cost) -> int | None:
    """What dvk's own answer says it moved; None for everybody else."""
    if not cost.stdout.startswith("{"):
        return None
    try:
        result = json.loads(cost.stdout).get("result") or {}
    except ValueError:
        return None
    said = result.get("moved_bytes", (result.get("fetch") or {}).get("moved_bytes"))
    return said if isinstance(said, int) else None
