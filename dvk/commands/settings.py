"""`dvk config`: one setting, or all of them, each with the place it comes from.

A value is written where it makes sense for its key: what the team shares into `dvk.toml`, what belongs to this machine
into the clone's own file; `scope` overrules that. Works outside of repositories too, for the user's own file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from msgspec import Struct
from msgspec.structs import replace

from dvk.commands.init import stage_files
from dvk.commands.repo import Repo
from dvk.commands.trust import trust_typed
from dvk.errors import NotARepository, NotFound
from dvk.store.names import show
from dvk.workspace.config import Config, ConfigFiles, Layer, Value
from dvk.workspace.config_edit import set_value, unset
from dvk.workspace.keys import FILE_SCOPES, Scope, Setting, find_key, split_remote_key


class SettingValue(Struct, frozen=True):
    """A setting that has a value; sizes are in bytes."""

    key: str
    value: Setting
    scope: Scope  #: repo, user, local, env or default
    place: str  #: the file or variable


class SettingChanged(Struct, frozen=True):
    """A setting that was written or removed."""

    key: str
    value: Setting | None  #: what was written; None when it was removed
    scope: Scope
    place: str
    now: SettingValue | None  #: what is in force now: a stronger place may say something else
    staged: bool = False  #: dvk.toml was put into the Git index
    not_trusted: str = ""  #: why the URL of a remote could not be remembered as trusted


class Settings:
    """The settings that hold in a folder.

    Args:
        repo: the workspace; None outside of one, where only the user's own settings are.
    """

    def __init__(self, repo: Repo | None, environ: Mapping[str, str]) -> None:
        self.repo, self.environ = repo, environ
        if repo is not None:
            self.files = repo.workspace.config.files
        else:
            user = ConfigFiles.of(b"/", b"/", environ).user
            self.files = ConfigFiles(b"", user, b"")  # no file has the empty name

    def all(self, scope: Scope | None = None) -> list[SettingValue]:
        """Every setting that has a value, by name; of one file with `scope`."""
        return [_as_record(k, v) for k, v in sorted(self._values(scope).items())]

    def get(self, key: str, *, scope: Scope | None = None) -> SettingValue:
        """One setting.

        Raises:
            UsageError: there is no such setting. NotFound: nothing sets it.
        """
        doc = find_key(key).doc
        found = self._values(scope).get(key)
        if found is None:
            where = f" in {self._place(scope)}" if scope else ""
            raise NotFound(f"is not set{where}", subject=key, hint=f"{doc}; `dvk config {key} VALUE` sets it")
        return _as_record(key, found)

    def set(self, key: str, text: str, *, scope: Scope | None = None) -> SettingChanged:
        """Give a setting a value.

        Raises:
            UsageError: no such setting, or not such a value. Refused: it does not belong in that file.
        """
        where = scope or self._home(key)
        value = find_key(key).parse(text)
        with self._locked(where):
            set_value(self.files, where, key, text)
        done = self._changed(key, value, where)
        remote, option = split_remote_key(key)
        if option == "url" and where == "repo":
            done = replace(done, not_trusted=trust_typed(self.files, self.environ, remote))
        return done

    def unset(self, key: str, *, scope: Scope | None = None) -> SettingChanged:
        """Remove a setting, from the strongest file that has it.

        Raises:
            NotFound: no file has it.
        """
        find_key(key)
        places: tuple[Scope, ...] = FILE_SCOPES if self.repo is not None else ("user",)
        where = scope or next((s for s in reversed(places) if key in self._values(s)), None)
        if where is None:
            raise NotFound("is not set", subject=key, hint="`dvk config --list` shows what is")
        with self._locked(where):
            unset(self.files, where, key)
        return self._changed(key, None, where)

    def _home(self, key: str) -> Scope:
        """Where a value is written when nobody says where: where it is now, else where the key belongs."""
        scopes = find_key(key).scopes
        if self.repo is None:
            return "user"
        there = [s for s in ("local", "repo") if s in scopes and key in self._values(s)]
        if there:
            return "local" if there[0] == "local" else "repo"
        return "repo" if "repo" in scopes else "local"

    def _values(self, scope: Scope | None) -> Mapping[str, Value]:
        if scope is None:
            return Config.load(self.files, self.environ).values
        self._need_repo(scope)
        return Layer.read(self.files.path(scope), scope).values

    def _need_repo(self, scope: Scope) -> Repo | None:
        if self.repo is None and scope != "user":
            raise NotARepository(
                "no Git repository here",
                subject=show(os.getcwdb()),
                hint="--global reads and writes your own settings, anywhere",
            )
        return self.repo

    def _locked(self, scope: Scope) -> AbstractContextManager[object]:
        repo = self._need_repo(scope)
        return repo.workspace.lock() if repo is not None else nullcontext()

    def _place(self, scope: Scope) -> str:
        return "dvk.toml" if scope == "repo" else show(self.files.path(scope))

    def _changed(self, key: str, value: Setting | None, scope: Scope) -> SettingChanged:
        now = Config.load(self.files, self.environ).values.get(key)
        staged = False
        if scope == "repo" and self.repo is not None:
            staged = bool(stage_files(self.repo, [os.path.basename(self.files.repo)])[0])
        return SettingChanged(
            key, value, scope, self._place(scope), None if now is None else _as_record(key, now), staged
        )


def _as_record(key: str, value: Value) -> SettingValue:
    return SettingValue(key, value.value, value.origin.scope, value.origin.place)
