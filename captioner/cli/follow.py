"""`captioner follow`."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading

from captioner.cli.options import add_controls, add_export, add_keep, say

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
    add_keep(follow)
    add_export(follow)


def run(arguments: argparse.Namespace) -> int:
    """Follows until it is ended."""
    from captioner.artifacts.version_store import VersionStore
    from captioner.errors import ParameterInvalid, StartupRefused
    from captioner.hub import resolve
    from captioner.publish.follow import LEAST_WAIT_S, Follower
    from captioner.publish.webhook import listening

    if not arguments.every >= LEAST_WAIT_S:
        raise ParameterInvalid(f"every is {arguments.every:g} s; it must be at least {LEAST_WAIT_S:g}")
    model, branch = resolve.parse(arguments.model)
    follower = Follower(model, branch or "main", VersionStore(arguments.repository), _publish_options(arguments), say)
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


def _publish_options(arguments: argparse.Namespace) -> list[str]:
    """What `captioner publish` is to be given beside the model."""
    options = [f"--repository={arguments.repository}", f"--keep={arguments.keep}", f"--precision={arguments.precision}"]
    options += [f"--server={address}" for address in arguments.server or []]
    options += ["--no-server"] if arguments.no_server else []
    return options + ([f"--calibration={arguments.calibration}"] if arguments.calibration else [])
