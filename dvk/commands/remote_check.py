"""`dvk remote check`: does this remote keep what it promises? Each misbehaviour is named.

Writes and deletes objects of its own under `check/`, never anything else; who may only read gets a shorter check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct, field

from dvk.backend.check import Finding, Step, check
from dvk.backend.locate import parse_remote_url
from dvk.commands.repo import Repo
from dvk.errors import DvkError, NotOurs, Refused, RemoteError
from dvk.store.descriptor import KEY
from dvk.store.store import Store

#: No probe is repeated for longer than this: a check shall say what is wrong, not wait until it is right.
_DEADLINE_S = 15.0


class CheckResult(Struct):
    """What was tried on a remote, and what came of it."""

    name: str
    url: str
    store: str = ""  #: the id of the dvk store there; empty: none yet
    steps: Sequence[Step] = ()
    left_over: int = 0  #: probe objects under check/ that could not be removed
    fit: bool = True  #: nothing was found that puts data at risk
    failures: list[DvkError] = field(default_factory=list)  #: one for each fatal finding


def remote_check(
    repo: Repo, name: str | None = None, *, thorough: bool = False, on_step: Callable[[Step], None] = lambda _: None
) -> CheckResult:
    """Try on a remote (the default one without a name) everything that dvk relies on.

    Args:
        thorough: also an object above 100 MiB and more than 1,000 keys; some minutes on a slow line.

    Raises:
        NotFound: no such remote, or no such bucket. Refused: it needs trust. RemoteUnreachable, RemoteDenied: there is
        nothing to check.
    """
    read_only = parse_remote_url(repo.remote_config(name).url).read_only
    remote = repo.remote(name, write=not read_only, deadline_s=_DEADLINE_S)
    out = CheckResult(remote.name, remote.url)
    try:
        place = _place(remote.store, out)
        report = check(remote.store.backend, readable=KEY, thorough=thorough, on_step=on_step)
    finally:
        remote.store.close()
    out.steps, out.left_over = (place, *report.steps), report.left_over
    for step in out.steps:
        for found in step.findings:
            if found.fatal:
                out.failures.append(RemoteError(f"{found.name}: {found.problem}", subject=out.url, hint=found.hint))
    out.fit = not out.failures
    return out


def _place(store: Store, out: CheckResult) -> Step:
    """Whose place it is: a dvk store, nobody's, or somebody else's."""
    step = Step("what is there")
    try:
        found = store.describe()
    except NotOurs as e:
        step.findings.append(Finding("not-ours", e.message, "choose another prefix for dvk"))
        return step
    except Refused as e:
        step.findings.append(Finding("another-store", e.message, e.hint))
        return step
    if found is not None:
        out.store = found.store
    elif not store.backend.capabilities.writable:
        step.findings.append(Finding("not-ours", "there is no dvk store here to read", "check the URL"))
    elif next(iter(store.backend.survey("")), None) is not None:
        problem = "there are other objects here, and no dvk store"
        step.findings.append(Finding("not-empty", problem, "a prefix of its own keeps things apart", fatal=False))
    return step
