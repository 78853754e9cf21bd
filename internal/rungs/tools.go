package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// addTool copies one of the host's programs and the libraries it is linked with
// to the same places below dir.
func addTool(dir, name string) error {
	program, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if err := addFile(dir, program, filepath.Join("/bin", name)); err != nil {
		return err
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", program, err)
	}
	for _, lib := range libraries(string(out)) {
		if err := addFile(dir, lib, lib); err != nil {
			return err
		}
	}
	return nil
}

// libraries takes the paths out of what ldd(1) prints:
//
//	linux-vdso.so.1 (0x00007ffc)
//	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0c)
//	/lib64/ld-linux-x86-64.so.2 (0x00007f0d)
func libraries(ldd string) (paths []string) {
	for line := range strings.Lines(ldd) {
		for _, field := range strings.Fields(line) {
			if filepath.IsAbs(field) {
				paths = append(paths, field)
			}
		}
	}
	return paths
}

func addFile(dir, src, dst string) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, dst)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o755)
}
