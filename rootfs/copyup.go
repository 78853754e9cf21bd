package rootfs

// copyUp: written next.
func (c *Compiler) copyUp(e *entry) {}
