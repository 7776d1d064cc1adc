"""What KVM and the software CPU have in common: x86 registers, and the exits of a CPU."""
