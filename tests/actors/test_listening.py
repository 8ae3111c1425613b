"""At which address gloo and NCCL listen: by whom else there is, and by what the environment says."""

import os
from types import SimpleNamespace

import pytest

from actors import meeting_store
from actors.meeting_store import interface_of, listen_for

INTERFACES = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["192.0.2.2", "fe80::1%eth0", "fd00::2", "02:00:00:00:00:01"],
    "eth01": ["198.51.100.7"],
}


@pytest.fixture(autouse=True)
def node(monkeypatch):
    """One whose Ray is at eth0's address, and an environment that chooses nothing."""
    listed = {name: [SimpleNamespace(address=one) for one in found] for name, found in INTERFACES.items()}
    monkeypatch.setattr(meeting_store.psutil, "net_if_addrs", lambda: listed)
    monkeypatch.setattr(meeting_store.ray.util, "get_node_ip_address", lambda: "192.0.2.2")
    monkeypatch.setattr(meeting_store, "CHOSEN", None)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # restored in the end, whatever is set meanwhile
        monkeypatch.delenv(name)


def chosen():
    return os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME")


def test_those_of_one_node_listen_on_loopback_and_nccl_where_it_may_have_to_for_life():
    listen_for(["192.0.2.2", "192.0.2.2"])
    assert chosen() == ("lo", "=eth0")


def test_those_of_several_nodes_listen_where_ray_does_and_the_next_group_decides_anew():
    listen_for(["192.0.2.2", "192.0.2.9"])
    assert chosen() == ("eth0", "=eth0")
    listen_for(["192.0.2.2"])
    assert chosen() == ("lo", "=eth0")


def test_a_choice_in_the_environment_stands(monkeypatch):
    monkeypatch.setattr(meeting_store, "CHOSEN", "eth01")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth01")
    listen_for(["192.0.2.2"])
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth01" and os.environ["NCCL_SOCKET_IFNAME"] == "eth01"


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("192.0.2.2", "eth0"),
        ("fd00::2", "eth0"),
        ("fe80::1", "eth0"),
        ("127.0.0.5", "lo"),
        ("203.0.113.1", None),
    ],
)
def test_an_address_has_an_interface_or_none(address, interface):
    assert interface_of(address) == interface


def test_an_address_behind_a_translation_leaves_the_choice_to_gloo_and_nccl(monkeypatch):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # of the group before
    monkeypatch.setattr(meeting_store.ray.util, "get_node_ip_address", lambda: "203.0.113.1")
    listen_for(["203.0.113.1", "192.0.2.9"])
    assert chosen() == (None, None)
