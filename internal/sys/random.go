package sys

import "golang.org/x/sys/unix"

// Random fills b, of at most 256 bytes, with random bytes of the kernel's
// (getrandom(2), Linux 3.17), which for that many neither fails nor is
// interrupted once the kernel's generator is ready. crypto/rand would bring 200 kB
// and 32 MB of BSS along.
func Random(b []byte) {
	for {
		if n, err := unix.Getrandom(b, 0); err == nil && n == len(b) {
			return
		} else if err != nil && err != unix.EINTR {
			panic("getrandom: " + err.Error())
		}
	}
}
