"""`captioner follow`."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading

from captioner.commands.options import add_controls, say

SECRET_VARIABLE = "CAPTIONER_WEBHOOK_SECRET"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its options."""
    follow = verbs.add_parser("follow", help="publish each new commit of a branch on the Hub")
    follow.set_defaults(run=run)
    follow.add_argument("model", metavar="MODEL[@BRANCH]", help="a Hugging Face id; the branch is main unless named")
    add_controls(follow)
    follow.add_argument("--every", type=float, default=300, metavar="S", help="seconds between two looks, default 300")
    follow.add_argument("--once", action="store_true", help="look once, publish what is new and end, as cron wants it")
    follow.add_argument("--dry-run", action="store_true", help="look once and say what would be done")
    follow.add_argument(
        "--webhook-port", type=int, help=f"take the Hub's webhook here; its secret is {SECRET_VARIABLE}"
    )
    follow.add_argument("--webhook-host", default="127.0.0.1", help="address it listens on, default %(default)s")
    follow.add_argument(
        "--keep", type=int, default=4, help="versions that stay on disk, at least 2; default %(default)s"
    )
    follow.add_argument("--precision", default="fp32", help="of the vision encoder, see `captioner export --help`")


def run(arguments: argparse.Namespace) -> int:
    """Follows until it is ended."""
    from captioner import hub
    from captioner.errors import StartupRefused
    from captioner.repository import Repository
    from export.follow import Follower
    from export.webhook import listening

    model, branch = hub.parse(arguments.model)
    options = ["--repository", str(arguments.repository), "--keep", str(arguments.keep)]
    options += ["--precision", arguments.precision, *(["--no-server"] if arguments.no_server else [])]
    for address in arguments.server or []:
        options += ["--server", address]
    follower = Follower(model, branch or "main", Repository(arguments.repository), options, say)
    if arguments.dry_run:
        look = follower.look()
        say(look.why_not or f"would pull, export and publish {model}@{look.commit}")
        return 0
    if arguments.once:
        return 0 if follower.step() else 1
    wake = threading.Event()
    with contextlib.ExitStack() as stack:
        if arguments.webhook_port is not None:
            secret = os.environ.get(SECRET_VARIABLE)
            if not secret:
                raise StartupRefused(f"--webhook-port needs the secret in {SECRET_VARIABLE}")
            port = stack.enter_context(listening(arguments.webhook_host, arguments.webhook_port, secret, wake))
            say(f"taking the Hub's webhook at {arguments.webhook_host}:{port}")
        follower.run(arguments.every, wake)
    return 0
