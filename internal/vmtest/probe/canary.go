package main

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// runCanary prints, one line each, what no container may change: the guest's
// settings, the namespaces of every thread of PID 1 and its mounts, the
// processes there are (kernel threads come and go and have no command line), and
// the guest's own files, seen at a directory. It needs the guest's /proc.
func runCanary(c *invocation) int {
	root := c.parse(1, 1)[0]
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, name := range []string{"kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/domainname", "kernel/shmmax", "kernel/msgmax",
		"net/ipv4/ip_forward", "vm/overcommit_memory", "fs/suid_dumpable", "user/max_user_namespaces"} {
		data, err := os.ReadFile("/proc/sys/" + name)
		add("%s %s %v", name, strings.TrimSpace(string(data)), err)
	}
	links, _ := filepath.Glob("/proc/1/task/*/ns/*")
	for _, name := range links {
		if target, err := os.Readlink(name); err == nil { // threads end
			add("thread %s %s", filepath.Base(name), target)
		}
	}
	mounts, err := os.ReadFile("/proc/1/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		add("mount %s", strings.TrimSpace(line))
	}
	if err != nil {
		add("mounts: %v", err)
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range processes {
		text, _ := os.ReadFile(name)
		if pid := filepath.Base(filepath.Dir(name)); len(text) > 0 && pid != fmt.Sprint(os.Getpid()) {
			add("process %s %s", pid, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	if err := c.files(root, add); err != nil {
		fmt.Fprintf(os.Stderr, "probe canary: %v\n", err)
		return exitFailed
	}
	sort.Strings(lines)
	last := ""
	for _, line := range lines {
		if line != last {
			fmt.Println(line)
		}
		last = line
	}
	return 0
}

// files lists the files of one file system with all that a change would show in.
func (c *invocation) files(root string, add func(string, ...any)) error {
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		return err
	}
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		switch {
		case st.Dev != top.Dev && d.IsDir():
			return fs.SkipDir
		case st.Dev != top.Dev:
			return nil
		}
		text := fmt.Sprintf("file %s %d %o %d:%d", name, st.Ino, st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFREG:
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d %d %x", st.Size, st.Mtim.Nano(), sha256.Sum256(data))
		default:
			text += fmt.Sprintf(" %d %d", st.Size, st.Mtim.Nano())
		}
		add("%s", text)
		return nil
	})
}
