"""The terminal side of what makes a remote trustworthy: `remote trust`, `remote check`, `remote upgrade`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.text import Line, bold, dim, duration, green, plural, red, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import UsageError, one_or_many

if TYPE_CHECKING:
    from dvk.backend.check import Step
    from dvk.commands.remote_check import CheckResult
    from dvk.commands.trust import Trust, Trusted
    from dvk.commands.upgrade import UpgradeResult


def _trust(result: Trust | Trusted) -> Iterator[Line]:
    from dvk.commands.trust import Trusted

    if isinstance(result, Trusted):
        yield from result.urls
        yield dim(f"{len(result.urls)} trusted, listed in {result.place}")
        return
    again = "" if result.changed else " already" if result.trusted else ", and was not"
    yield (bold(result.url), f" is{again} trusted" if result.trusted else f" is not trusted any more{again}")
    if not result.needed:
        yield dim(f"{result.name} comes from your own settings, which need no trust")
    if result.forgot_store:
        yield f"the store that is there now is taken, in place of {result.forgot_store[:12]}"


@verb(render=_trust)
def trust(
    run: Run,
    name: Annotated[str | None, typer.Argument(help="The remote, or a URL; without it the default remote.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Stop to trust it.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="What you trust, in all repositories.")] = False,
) -> Trust | Trusted:
    """Say that the place which a repository names may be used.

    A URL in dvk.toml came with the repository, maybe from a stranger. Sending data there needs your word once, and so
    does reading from a server or a folder that it names. It holds for you, for exactly this URL, in all repositories.
    In an automatic job set DVK_TRUST_REMOTES to URLs, with spaces between; each covers what lies below it. Nothing is
    contacted.
    """
    from dvk.commands.repo import Repo
    from dvk.commands.trust import trust as command
    from dvk.commands.trust import trust_list

    if list_:
        if name is not None or revoke:
            raise UsageError("--list takes no remote")
        return trust_list(run.environ)
    with Repo(environ=run.environ) as repo:
        return command(repo, name, revoke=revoke)


# ------------------------------------------------------------ check


def _checked(result: CheckResult) -> Iterator[Line]:
    for step in result.steps:
        yield from _step(step)
    if result.left_over:
        yield f"{plural(result.left_over, 'probe object')} under check/ could not be removed"
    if not result.fit:
        yield (bold(result.url), " is not fit to hold data")
    elif any(step.findings for step in result.steps):
        yield (bold(result.url), " can be used")
    else:
        yield (
            bold(result.url),
            " keeps what it promises" + (f"; dvk store {result.store[:12]}" if result.store else ""),
        )


def _step(step: Step) -> Iterator[Line]:
    if step.skipped:
        yield dim(f"-    {step.what}: {step.skipped}")
        return
    fatal = any(f.fatal for f in step.findings)
    mark = red("bad") if fatal else yellow("weak") if step.findings else green("ok")
    yield (mark, " " * (5 - len(mark.text)), step.what, dim(f"  {duration(step.seconds)}"))
    for found in step.findings:
        yield ("     ", bold(found.name), f": {found.problem}")
        if found.hint:
            yield dim(f"     {found.hint}")


@verb(render=_checked, answer=True)
def check(
    run: Run,
    name: Annotated[str | None, typer.Argument(help="The remote; without a name the default one.")] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Also an object above 100 MiB and more than 1,000 keys.")
    ] = False,
) -> CheckResult:
    """Try on a remote everything that dvk relies on, and name what is wrong.

    Writes, lists and deletes small objects of its own under check/ and nothing else. Who may not write gets a check of
    reading. Ends with an error when the remote is not fit to hold data.
    """
    from dvk.commands.remote_check import remote_check
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        result = remote_check(repo, name, thorough=thorough)
    if result.failures:
        run.failure = one_or_many(f"{plural(len(result.failures), 'misbehaviour')} found", result.failures)
    return result


# ------------------------------------------------------------ upgrade


def _upgraded(result: UpgradeResult) -> Iterator[Line]:
    added = result.upgrade
    if not added.changes:
        yield (bold(result.url), " may hold everything that this dvk writes already")
        return
    may = "would be allowed to hold" if result.dry_run else "may now hold"
    yield (bold(result.url), f" {may} {', '.join((*added.codecs, *added.profiles))}")
    who = "everybody who uses it" if result.name else "every dvk that uses it"
    yield f"{who} {'would need' if result.dry_run else 'needs'} dvk {added.needs} or later"


@verb(render=_upgraded)
def upgrade(
    run: Run,
    name: Annotated[str | None, typer.Argument(help="The remote; without a name the default one.")] = None,
    local: Annotated[bool, typer.Option("--local", help="This clone's own store instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> UpgradeResult:
    """Let a remote hold what newer versions of dvk write.

    A store lists what it may hold, and dvk keeps to that list, so that nobody finds data there that their dvk cannot
    read. This adds everything that this dvk can write. Says which version everybody needs from then on, and asks.
    """
    from dvk.commands.repo import Repo
    from dvk.commands.upgrade import upgrade as command

    if local and name is not None:
        raise UsageError("--local takes no remote")
    with Repo(environ=run.environ) as repo:
        if dry_run or not yes:
            plan = command(repo, name, local=local, dry_run=True)
            if dry_run or not plan.upgrade.changes:
                return plan
            run.confirm(
                f"From then on everybody who uses {plan.url} needs dvk {plan.upgrade.needs} or later. Upgrade?",
                option="--yes",
            )
        return command(repo, name, local=local)
