"""What the twin, interop and fault tests share: both ends, raw peers, data, processes."""
