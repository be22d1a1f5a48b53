"""Items of several owners in a fair order: next is an item of the owner who has had least, by cost and not by count."""

from collections import Counter, deque
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Entry(NamedTuple, Generic[T]):
    number: int  # the order in which items came
    cost: float
    item: T


class FairQueue(Generic[T]):
    """Each owner's items come out in the order in which they came in.

    Start-time fair queueing (Goyal, Vin, Cheng 1996): an owner who comes starts level with the item that was taken
    last, so that nobody saves up.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_Entry[T]]] = {}
        self._taken: Counter[str] = Counter()  # items that were taken and are not done
        self._spent: dict[str, float] = {}  # cost of what an owner has had, while the owner has items here
        self._now = 0.0  # what the owner of the item that was taken last had had before

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def count(self, owner: str) -> int:
        """How many items of an owner wait."""
        return len(self._waiting.get(owner, ()))

    def add(self, owner: str, number: int, cost: float, item: T) -> None:
        """Add an item."""
        self._spent.setdefault(owner, self._now)
        self._waiting.setdefault(owner, deque()).append(_Entry(number, cost, item))

    def order(self) -> list[T]:
        """The items in the order in which they will be taken."""
        spent, waiting = dict(self._spent), {owner: deque(entries) for owner, entries in self._waiting.items()}
        order = []
        while any(waiting.values()):
            owner = _next(waiting, spent)
            entry = waiting[owner].popleft()
            spent[owner] += entry.cost
            order.append(entry.item)
        return order

    def first(self) -> T:
        """The next item. Raises `IndexError` if there is none."""
        if not len(self):
            raise IndexError("the queue is empty")
        return self._waiting[_next(self._waiting, self._spent)][0].item

    def take(self) -> T:
        """Remove and return the next item; its owner is charged for it. Raises `IndexError` if there is none."""
        item = self.first()
        owner = _next(self._waiting, self._spent)
        self._now = self._spent[owner]
        self._spent[owner] += self._waiting[owner].popleft().cost
        self._taken[owner] += 1
        return item

    def remove(self, owner: str, item: T) -> None:
        """Remove an item that waits."""
        self._waiting[owner] = deque(entry for entry in self._waiting[owner] if entry.item != item)
        self._forget(owner)

    def done(self, owner: str) -> None:
        """An item that was taken is done."""
        self._taken[owner] -= 1
        self._forget(owner)

    def _forget(self, owner: str) -> None:
        if not self._taken[owner] and not self.count(owner):
            for by_owner in (self._taken, self._spent, self._waiting):
                by_owner.pop(owner, None)


def _next(waiting: "dict[str, deque[_Entry[T]]]", spent: dict[str, float]) -> str:
    """The owner whose turn it is."""
    owners = [owner for owner, entries in waiting.items() if entries]
    return min(owners, key=lambda owner: (spent[owner], waiting[owner][0].number))
