package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv makes this binary a child that does one thing.
const childEnv = "VMINIT_TEST_CHILD"

// pivotInChild runs pivot_root in a child with a mount namespace of its own.
func pivotInChild() error {
	self := "/init" // there may be no /proc yet
	if _, err := os.Stat(self); err != nil {
		self = "/proc/self/exe"
	}
	child := exec.Command(self)
	child.Env = []string{childEnv + "=pivot"}
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := child.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return unix.Errno(exit.ExitCode())
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// childMain returns the errno of what it was asked to do.
func childMain(what string) int {
	switch what {
	case "daemon":
		main()
	case "sleep":
		time.Sleep(time.Hour)
	case "pivot":
		var errno unix.Errno
		if err := pivot(); errors.As(err, &errno) {
			return int(errno)
		} else if err != nil {
			return 255
		}
	}
	return 0
}

func pivot() error {
	dir := "/newroot"
	if _, err := os.Stat("/init"); err != nil {
		dir = "/run/newroot"
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := unix.Mount("new", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if _, err := os.Stat("/init"); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the old root shows through: %v", err)
	}
	return nil
}
