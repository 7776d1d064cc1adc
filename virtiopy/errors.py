"""Exceptions that say whose fault it was."""


class VirtiopyError(Exception):
    """Base of all of virtiopy's exceptions; its text is one sentence for a person."""


class ConfigError(VirtiopyError):
    """The user's: a missing image, an option out of range. The text says how to mend it."""


class HostError(VirtiopyError):
    """The host's: no /dev/kvm, a capability that is missing. The text says how to mend it."""


class DriverError(VirtiopyError):
    """The guest's driver's: it broke the virtio specification, whose section is in the text."""


class GuestError(VirtiopyError):
    """The guest's: it triple-faulted, ran out of its time, touched what is not there."""


class PeerError(VirtiopyError):
    """A vhost-user peer's: it broke the protocol."""
