"""The terminal side of what makes a remote trustworthy: `remote trust`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.text import Line, bold, dim
from dvk.cli.verb import Run, verb
from dvk.errors import UsageError

if TYPE_CHECKING:
    from dvk.commands.trust import Trust, Trusted


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


@verb(render=_trust)
def trust(
    run: Run,
    name: Annotated[str | None, typer.Argument(help="The remote; without a name the default one.")] = None,
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
