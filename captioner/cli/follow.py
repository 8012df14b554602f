"""`captioner follow`."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading

from captioner.cli.options import add_controls, add_export, add_keep, log

SECRET_VARIABLE = "CAPTIONER_WEBHOOK_SECRET"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    follow = verbs.add_parser("follow", help="publish each new commit of a branch on the Hub")
    follow.set_defaults(run=run)
    follow.add_argument("model", metavar="MODEL[@BRANCH]", help="Hugging Face id; default branch main")
    add_controls(follow)
    follow.add_argument("--every", type=float, default=300, metavar="S", help="seconds between two polls, default 300")
    follow.add_argument(
        "--once", action="store_true", help="poll once, publish a new commit, and exit; for example from cron"
    )
    follow.add_argument("--dry-run", action="store_true", help="poll once and print what would be published")
    follow.add_argument(
        "--webhook-port", type=int, help=f"listen on this port for the Hub's webhook; its secret is {SECRET_VARIABLE}"
    )
    follow.add_argument("--webhook-host", default="127.0.0.1", help="address to listen on, default %(default)s")
    add_keep(follow)
    add_export(follow)


def run(arguments: argparse.Namespace) -> int:
    """Follow the branch until the process is stopped."""
    from captioner.artifacts.version_store import VersionStore
    from captioner.errors import ParameterInvalid, StartupRefused
    from captioner.hub import resolve
    from captioner.publish.follow import MIN_INTERVAL_S, Follower
    from captioner.publish.webhook import listening

    if not arguments.every >= MIN_INTERVAL_S:
        raise ParameterInvalid(f"every is {arguments.every:g} s; it must be at least {MIN_INTERVAL_S:g}")
    model, branch = resolve.parse(arguments.model)
    follower = Follower(model, branch or "main", VersionStore(arguments.repository), _publish_options(arguments), log)
    if arguments.dry_run:
        poll = follower.poll()
        log(poll.skip_reason or f"would pull, export and publish {model}@{poll.commit}")
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
            log(f"listening for the Hub's webhook on {arguments.webhook_host}:{port}")
        follower.run(arguments.every, wake)
    return 0


def _publish_options(arguments: argparse.Namespace) -> list[str]:
    """Return the options to pass on to `captioner publish`."""
    options = [f"--repository={arguments.repository}", f"--keep={arguments.keep}", f"--precision={arguments.precision}"]
    options += [f"--server={address}" for address in arguments.server or []]
    options += ["--no-server"] if arguments.no_server else []
    return options + ([f"--calibration={arguments.calibration}"] if arguments.calibration else [])
