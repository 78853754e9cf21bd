package kcheck

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

const ioringSetupRDisabled = 1 << 6 // IORING_SETUP_R_DISABLED, linux/io_uring.h

func securityFeatures() []Feature {
	return []Feature{
		{Name: "no_new_privs", Since: "3.5", Need: Required, Loses: "set-user-ID programs could raise privileges", probe: func(e *env) error {
			return e.child(0, func(p *nsexec.Program) {
				p.Call(unix.SYS_PRCTL, nsexec.Int(unix.PR_SET_NO_NEW_PRIVS), nsexec.Int(1), nsexec.Int(0), nsexec.Int(0), nsexec.Int(0))
			})
		}},
		{Name: "ambient capabilities", Since: "4.3", Need: Used, Loses: "capabilities.ambient is refused", probe: func(*env) error {
			return unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, unix.CAP_CHOWN, 0, 0)
		}},
		{Name: "session keyrings", Since: "2.6.10", Need: Used, Loses: "containers share the daemon's keys", probe: func(e *env) error {
			return e.child(0, func(p *nsexec.Program) {
				p.Call(unix.SYS_KEYCTL, nsexec.Int(unix.KEYCTL_JOIN_SESSION_KEYRING), p.Str("vminit-check"))
			})
		}},
		{Name: "landlock", Since: "5.13", Need: Optional, Loses: "programs cannot confine themselves", probe: landlock, note: func(*env) string {
			n, _ := landlockABI()
			return fmt.Sprintf("ABI %d", n)
		}},
		{Name: "AppArmor", Since: "2.6.36", Need: Used, Loses: "process.apparmorProfile is refused", probe: lsm("apparmor")},
		{Name: "SELinux", Since: "2.6.0", Need: Used, Loses: "process.selinuxLabel is refused", probe: lsm("selinux")},
		{Name: "lsm_list_modules", Since: "6.8", Need: Optional, Loses: "LSMs are found through securityfs", probe: func(*env) error {
			return try(unix.SYS_LSM_LIST_MODULES, make([]byte, 512), halves(512), 0)
		}},
		{Name: "io_uring", Since: "5.1", Need: Optional, Loses: "no asynchronous I/O of that kind", probe: func(*env) error { return fd(ioUring(0)) }},
		{Name: "io_uring restrictions", Since: "5.10", Need: Optional, Loses: "rings cannot be limited before they are handed over", probe: func(*env) error {
			ring, err := ioUring(ioringSetupRDisabled)
			if err != nil {
				return err
			}
			defer unix.Close(ring)
			const registerRestrictions = 11 // IORING_REGISTER_RESTRICTIONS
			// One that allows io_uring_register's IORING_REGISTER_RESTRICTIONS.
			restriction := append([]byte{0, 0, registerRestrictions, 0}, make([]byte, 12)...)
			return try(unix.SYS_IO_URING_REGISTER, ring, registerRestrictions, restriction, 1)
		}},
		{Name: "userfaultfd", Since: "4.3", Need: Optional, Loses: "no page faults handled by programs", probe: func(*env) error {
			return fd(call(unix.SYS_USERFAULTFD, unix.O_CLOEXEC))
		}},
	}
}

// ioUring makes a ring of one entry.
func ioUring(flags uint32) (int, error) {
	params := append(halves(0, 0, flags), make([]byte, 108)...)
	n, err := call(unix.SYS_IO_URING_SETUP, 1, params)
	if b, e := os.ReadFile("/proc/sys/kernel/io_uring_disabled"); errors.Is(err, unix.EPERM) && e == nil && strings.TrimSpace(string(b)) != "0" {
		return n, notHere(err, "switched off by kernel.io_uring_disabled")
	}
	return n, err
}

func landlockABI() (int, error) {
	return call(unix.SYS_LANDLOCK_CREATE_RULESET, nilArg, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
}

func landlock(*env) error {
	_, err := landlockABI()
	if errors.Is(err, unix.EOPNOTSUPP) {
		return notHere(err, "built in but not switched on: add it to lsm= on the kernel's command line")
	}
	return err
}

// lsm asks whether a security module is active.
func lsm(name string) func(*env) error {
	return func(*env) error {
		if b, err := os.ReadFile("/sys/kernel/security/lsm"); err == nil {
			for active := range strings.SplitSeq(strings.TrimSpace(string(b)), ",") {
				if active == name {
					return nil
				}
			}
			return notHere(nil, "not among the active modules: %s", strings.TrimSpace(string(b)))
		}
		dir := map[string]string{"apparmor": "/sys/module/apparmor", "selinux": "/sys/fs/selinux"}[name]
		if _, err := os.Stat(dir); err != nil {
			return notHere(unix.ENOENT, "no %s, and no securityfs that would list it", dir)
		}
		if b, err := os.ReadFile(dir + "/parameters/enabled"); err == nil && strings.TrimSpace(string(b)) != "Y" {
			return notHere(nil, "built in but not switched on")
		}
		return nil
	}
}
