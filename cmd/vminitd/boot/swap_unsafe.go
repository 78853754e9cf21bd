package boot

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// swapTimeout is how long a swap device may take to be plugged in.
const swapTimeout = 10 * time.Second

// Flags of swapon(2), linux/swap.h.
const (
	swapPrefer  = 0x8000
	swapDiscard = 0x10000
)

// SwapOn turns on swapping as systemd.swap-extra=DEVICE[:OPTIONS] of the kernel
// command line asks for it (systemd-fstab-generator(8)), once the device is
// there. The host has written the area: mkswap(8). Options are pri=N and discard.
func SwapOn(asked string) error {
	device, options, _ := strings.Cut(asked, ":")
	if !strings.HasPrefix(device, "/") || strings.ContainsRune(device, 0) {
		return sys.Invalidf("swap %q: want the path of a device", asked)
	}
	flags := 0
	for o := range strings.SplitSeq(options, ",") {
		n, err := strconv.ParseUint(strings.TrimPrefix(o, "pri="), 10, 15)
		switch {
		case o == "" || o == "defaults":
		case o == "discard":
			flags |= swapDiscard
		case strings.HasPrefix(o, "pri=") && err == nil:
			flags |= swapPrefer | int(n)
		default:
			return sys.Invalidf("swap %s: option %q", device, o)
		}
	}
	path, err := unix.BytePtrFromString(device)
	if err != nil {
		return sys.Mark(sys.ErrInvalid, err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), swapTimeout, fmt.Errorf("it did not appear within %s", swapTimeout))
	defer cancel()
	err = sys.AwaitDevice(ctx, func() bool { return unix.Access(device, unix.F_OK) == nil })
	if err != nil {
		return fmt.Errorf("wait for device %s: %w", device, err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(path)), uintptr(flags), 0); errno != 0 {
		return fmt.Errorf("swapon %s: %w", device, errno)
	}
	return nil
}
