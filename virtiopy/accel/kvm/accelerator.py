"""Guest code executed by KVM."""

from collections.abc import Callable

from virtiopy.accel.kvm.cpuid import CPUS_MAX
from virtiopy.accel.kvm.system import Capability, Kvm
from virtiopy.accel.kvm.vcpu import Vcpu
from virtiopy.errors import ConfigError
from virtiopy.memory import GuestMemory


class KvmAccelerator:
    """A VM of KVM with `memory`, and with the in-kernel interrupt chips unless told otherwise.

    Without them a HLT comes back as an exit; with them it waits in the kernel.
    """

    name = "kvm"
    translates = False

    def __init__(self, memory: GuestMemory, *, interrupts: bool = True) -> None:
        with Kvm() as system:
            self.vm = system.create_vm()
            self._cpus_max = min(system.cpus_max, CPUS_MAX)
            self.has_read_only_memory = system.check_extension(Capability.READONLY_MEM) > 0
        self.vm.place_private_pages()
        if interrupts:
            self.vm.create_irqchip()
            self.vm.create_pit()
        self.vm.set_memory(memory)

    def create_cpu(self, number: int = 0, count: int = 1) -> Vcpu:
        """Make vCPU `number` of `count`: KVM waits for the guest's INIT and SIPI before it runs.

        Only CPU 0 needs no start. Raises ConfigError for more CPUs than KVM has.
        """
        if count > self._cpus_max:
            raise ConfigError(
                f"The guest has {count} CPUs, and this host's KVM gives it {self._cpus_max} at "
                "most: give it fewer."
            )
        return self.vm.create_vcpu(number, count)

    def code_written(self, address: int, length: int) -> None:
        """Do nothing: a CPU sees by itself what is in its memory."""

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of an interrupt line: KVM_IRQ_LINE."""
        self.vm.set_irq_line(gsi, level)

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        """Have the kernel turn writes into an eventfd: KVM_IOEVENTFD with datamatch."""
        return self.vm.add_ioeventfd(address, value, eventfd)

    def add_irqfd(self, gsi: int, eventfd: int) -> None:
        """Have the kernel turn an eventfd into an edge-triggered interrupt: KVM_IRQFD."""
        self.vm.add_irqfd(gsi, eventfd)

    def add_read_only_memory(
        self, guest_address: int, size: int, host_address: int
    ) -> Callable[[], None]:
        """Add a memory slot with KVM_MEM_READONLY; returns what removes it."""
        return self.vm.add_read_only_memory(guest_address, size, host_address)

    def statistics(self) -> dict[str, int]:
        """Return KVM's counters for the VM."""
        return self.vm.statistics()

    def close(self) -> None:
        """Close the VM."""
        self.vm.close()
