package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// featuresFile tells a shim, which may read it through a file system that it
// shares with the guest, what it may leave to the guest.
const featuresFile = "/run/vminitd/features.json"

// runtimeFeatures are annotations of containerd's RuntimeInfo: the types of
// mounts that Create takes as they are, and what kind of runtime this is.
func runtimeFeatures() map[string]string {
	return map[string]string{
		"containerd.io/runtime-allow-mounts": "mkdir/*,format/*,erofs,ext4",
		"containerd.io/runtime-type":         "vm",
		"containerd.io/vm-type":              "microvm",
		"io.github.vminit.version":           version,
	}
}

func writeFeatures() error {
	data, err := json.Marshal(runtimeFeatures())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(featuresFile), 0o750); err != nil {
		return fmt.Errorf("features file: %w", err)
	}
	return os.WriteFile(featuresFile, data, 0o600)
}
