"""What passes between drivers and devices, told live: registers, rings, notifications, messages."""
