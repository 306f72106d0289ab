"""What computes: one module a kind of device, all to the contract of `base`."""
