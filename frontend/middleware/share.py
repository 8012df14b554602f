"""A limited resource that clients share, such as requests in flight or bytes of memory."""

from __future__ import annotations

OVERSHOOT = 2  # the total never exceeds this multiple of the limit


class Share:
    """Amounts of one resource by client.

    A client gets an amount while the total stays within `limit`. Beyond it, a client still gets its equal part (`limit`
    divided by the number of clients that hold something) or its first amount, so one client cannot lock out another.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._held: dict[str, int] = {}

    def has_room(self, client: str, amount: int = 1) -> bool:
        """Return whether `take` would succeed now."""
        total, own = self.total + amount, self._held.get(client, 0) + amount
        clients = len(self._held) + (client not in self._held)
        return total <= self.limit or (total <= OVERSHOOT * self.limit and own <= max(self.limit // clients, amount))

    def take(self, client: str, amount: int = 1) -> bool:
        """Take `amount` for `client`. Return False, and take nothing, if there is no room."""
        if not self.has_room(client, amount):
            return False
        self.total += amount
        self._held[client] = self._held.get(client, 0) + amount
        return True

    def give(self, client: str, amount: int = 1) -> None:
        """Give back what `take` took."""
        self.total -= amount
        self._held[client] -= amount
        if not self._held[client]:
            del self._held[client]
