"""Guest code executed by KVM: /dev/kvm, its VMs, its vCPUs and their counters."""
