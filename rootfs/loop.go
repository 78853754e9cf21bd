package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// loopOptions are loop, offset=BYTES and sizelimit=BYTES of mount(8).
type loopOptions struct{ offset, size uint64 }

// loopOption takes an option if it is about loop devices.
func (c *mountCall) loopOption(o string) (bool, error) {
	key, value, _ := strings.Cut(o, "=")
	loop := loopOptions{}
	if c.loop != nil {
		loop = *c.loop
	}
	var err error
	switch key {
	case "loop":
		if value != "" {
			return true, sys.Invalidf("option %s: which loop device it is cannot be chosen", o)
		}
	case "offset":
		loop.offset, err = strconv.ParseUint(value, 10, 63)
	case "sizelimit":
		loop.size, err = strconv.ParseUint(value, 10, 63)
	default:
		return false, nil
	}
	if err != nil {
		return true, sys.Invalidf("option %s: not a number of bytes", o)
	}
	c.loop = &loop
	return true, nil
}

// attach makes a block device of an image and returns it open, to be closed
// when it is mounted: the kernel lets go of the image when nobody uses the
// device any more (LO_FLAGS_AUTOCLEAR). For what is a block device already it
// returns nil. (loop(4); LOOP_CONFIGURE, Linux 5.8.)
func (o *loopOptions) attach(image string, readOnly bool) (*os.File, error) {
	mode := os.O_RDWR
	config := unix.LoopConfig{Info: unix.LoopInfo64{Offset: o.offset, Sizelimit: o.size, Flags: unix.LO_FLAGS_AUTOCLEAR}}
	if readOnly {
		mode = os.O_RDONLY
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
	file, err := os.OpenFile(image, mode|unix.O_NONBLOCK, 0) // no waiting on a fifo
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case st.Mode()&os.ModeDevice != 0 && *o == (loopOptions{}):
		return nil, nil
	case !st.Mode().IsRegular():
		return nil, sys.Invalidf("loop device of %s: it is not a file", image)
	}
	config.Fd = uint32(file.Fd())
	loop, err := configureLoop(&config, mode)
	if err != nil {
		return nil, fmt.Errorf("loop device of %s: %w", image, err)
	}
	return loop, nil
}

// configureLoop takes a free device. Somebody else may take the same one at the
// same time; then there is another.
func configureLoop(config *unix.LoopConfig, mode int) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, sys.Unsupportedf("the kernel has no loop devices (is the module loop loaded?): %w", err)
	}
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free one: %w", err)
		}
		loop, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), mode, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if err != unix.EBUSY {
			return nil, fmt.Errorf("configure %s: %w", loop.Name(), err)
		}
	}
	return nil, fmt.Errorf("none stays free: %w", unix.EBUSY)
}
