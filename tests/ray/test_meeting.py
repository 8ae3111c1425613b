"""Ranks meet in an actor: torch's store without a port, and groups that listen on one address."""

from collections.abc import Iterator
from datetime import timedelta

import psutil
import pytest
import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from torch.distributed import PrefixStore, Store

from actors.meeting import called
from actors.meeting_store import MeetingStore, join, new_store

WAIT_S = 2.0


@pytest.fixture
def meeting(ray_cluster: None) -> Iterator[ActorHandle]:
    handle = called()
    yield handle
    ray.kill(handle)


@pytest.fixture(params=["itself", "as torch's own code calls it"])
def store(meeting: ActorHandle, request: pytest.FixtureRequest) -> Iterator[Store]:
    own = MeetingStore(meeting, WAIT_S)
    yield own if request.param == "itself" else PrefixStore("prefix", own)


def test_it_holds_what_every_store_holds(store: Store) -> None:
    store.set("a", b"\x00\xff")
    store.set("text", "words")
    assert store.get("a") == b"\x00\xff" and store.get("text") == b"words"
    assert store.check(["a", "text"]) and not store.check(["a", "b"])
    assert [store.add("sum", 3), store.add("sum", -1)] == [3, 2]
    assert store.compare_set("new", "", "one") == b"one"
    assert store.compare_set("new", "two", "three") == b"one"
    assert store.compare_set("new", "one", "two") == store.get("new") == b"two"
    store.wait(["a", "new"], timedelta(seconds=WAIT_S))
    assert store.delete_key("a") and not store.delete_key("a") and not store.check(["a"])


def test_what_is_not_told_in_time_is_named(store: Store) -> None:
    store.set("a", b"")
    for ask in (
        lambda: store.get("b"),
        lambda: store.wait(["a", "b"]),
        lambda: store.wait(["a", "b"], timedelta(seconds=0.1)),
    ):
        with pytest.raises(TimeoutError, match=r"wait timeout: \S*b\b"):
            ask()


def test_the_end_of_a_meeting_does_not_pass_for_the_death_of_who_asks(ray_cluster: None) -> None:
    store = new_store(WAIT_S)
    ray.kill(store.meeting)
    with pytest.raises(ConnectionError, match="meeting is over: ActorDiedError"):
        store.get("a")


@ray.remote(num_cpus=0)
class Rank:
    def call(self) -> Store:
        self.store = new_store(30)
        return self.store

    def sum(self, store: Store, rank: int, world: int, wait_s: float) -> float:
        join("gloo", store, rank, world, timedelta(seconds=wait_s))
        number = torch.tensor([1.0 + rank])
        dist.all_reduce(number)
        dist.all_reduce(number, group=dist.new_group(list(range(world))))
        return number.item()

    def listens(self) -> list[str]:
        found = psutil.Process().net_connections("inet")
        return sorted(connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN)


def test_ranks_of_one_node_meet_and_listen_on_loopback_alone(ray_cluster: None) -> None:
    ranks = [Rank.remote() for _ in range(3)]
    before = ray.get([rank.listens.remote() for rank in ranks], timeout=60)
    store = ray.get(ranks[0].call.remote(), timeout=60)
    sums = [rank.sum.remote(store, number, 3, 30.0) for number, rank in enumerate(ranks)]
    assert ray.get(sums, timeout=60) == [18.0] * 3
    for found, ray_s in zip(ray.get([rank.listens.remote() for rank in ranks]), before, strict=True):
        assert found == sorted([*ray_s, "127.0.0.1", "127.0.0.1"])  # a port for either group
    for rank in ranks:
        ray.kill(rank)
    with pytest.raises(ConnectionError):  # it ends with the process that called it
        store.wait(["never"], timedelta(seconds=60))


def test_a_rank_alone_gives_up_in_time(ray_cluster: None) -> None:
    rank = Rank.remote()
    with pytest.raises(TimeoutError, match="address/1"):
        store = ray.get(rank.call.remote(), timeout=60)
        ray.get(rank.sum.remote(MeetingStore(store.meeting, WAIT_S), 0, 2, WAIT_S), timeout=60)
    ray.kill(rank)
