"""/dev/kvm: system, VM, vCPU, exits, statistics."""
