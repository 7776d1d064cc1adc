import sys
from collections.abc import Iterator

import pytest

from virtiopy import accel
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.allocate(1 << 20) as memory:
        yield memory


def hide_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kvm(memory: GuestMemory, *, interrupts: bool = True) -> None:
        raise HostError("/dev/kvm does not exist: enable it.")

    monkeypatch.setattr(accel, "KvmAccelerator", no_kvm)


def hide_unicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("accelerator", "cpu"):
        monkeypatch.delitem(sys.modules, f"virtiopy.accel.tcg.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "unicorn", None)


def test_an_unknown_name_is_refused_with_those_there_are(memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match="name one of kvm, tcg, auto"):
        accel.select("xen", memory)


def test_a_missing_unicorn_is_told_with_the_pip_command(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_unicorn(monkeypatch)
    with pytest.raises(HostError, match=r"pip install 'virtiopy\[tcg\]'"):
        accel.select("tcg", memory)


def test_auto_says_in_one_line_that_it_does_without_kvm(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("unicorn")
    hide_kvm(monkeypatch)
    notes: list[str] = []
    accelerator = accel.select("auto", memory, note=notes.append)
    assert accelerator.name == "tcg"
    assert notes == ["Running on the software CPU (tcg): /dev/kvm does not exist: enable it."]


def test_auto_without_either_tells_both_remedies(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_kvm(monkeypatch)
    hide_unicorn(monkeypatch)
    with pytest.raises(HostError, match="enable it") as caught:
        accel.select("auto", memory)
    assert "pip install 'virtiopy[tcg]'" in str(caught.value)


def test_kvm_asked_for_by_name_is_not_replaced(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_kvm(monkeypatch)
    with pytest.raises(HostError, match="/dev/kvm"):
        accel.select("kvm", memory)
