"""Fair shares: one client cannot take what another needs, and the total is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from frontend.middleware.share import OVERSHOOT, Share


def test_one_client_may_use_everything_that_is_free() -> None:
    share = Share(8)
    assert [share.take("a") for _ in range(10)] == [True] * 8 + [False] * 2


def test_a_client_that_took_everything_does_not_lock_out_others() -> None:
    share = Share(8)
    while share.take("a"):
        pass
    assert [share.take("b") for _ in range(5)] == [True] * 4 + [False]
    assert [share.take("c") for _ in range(5)] == [True] * 2 + [False] * 3
    assert not share.take("a")


def test_what_is_given_back_goes_to_the_clients_below_their_share_first() -> None:
    share = Share(4)
    while share.take("a"):
        pass
    for client in "bcd":
        while share.take(client):
            pass
    share.give("a")
    assert not share.take("a"), "a has more than its part of the limit"
    assert share.take("e")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 5), st.booleans())))
def test_the_total_is_what_the_clients_hold_and_never_exceeds_the_bound(steps: list[tuple[str, int, bool]]) -> None:
    share, held = Share(7), dict.fromkeys("abcdef", 0)
    for client, amount, takes in steps:
        if takes:
            had_room = share.has_room(client, amount)
            assert share.take(client, amount) == had_room
            held[client] += amount if had_room else 0
        elif held[client] >= amount:
            share.give(client, amount)
            held[client] -= amount
        assert share.total == sum(held.values()) <= OVERSHOOT * 7
