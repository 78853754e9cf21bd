package cgroup2

import (
	"bytes"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// Update is [Cgroup.Apply] for a running container: if one write fails, those
// before it are undone, as far as the kernel allows, so that the limits are
// either the new ones or the old ones. It costs one read more for each write.
func (c *Cgroup) Update(writes []Write) error {
	var undo []Write
	for _, w := range writes {
		for file := &w; file != nil; file = file.Else {
			old, err := c.dir.read(file.File)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err == nil {
				undo = append(undo, Write{File: file.File, Value: oldValue(*file, old), Optional: true})
			}
			break // a file that cannot be read is one that cannot be undone
		}
	}
	err := c.Apply(writes)
	if err != nil {
		_ = c.Apply(undo)
	}
	return err
}

// oldValue returns what to write to undo w, given what its file held before.
// Files with one line for each device, or for each resource, get back the line
// that w was about; one that was not there becomes the file's default.
func oldValue(w Write, old []byte) string {
	key, _, _ := strings.Cut(w.Value, " ")
	switch w.File {
	case "io.max", "io.latency", "io.weight", "io.bfq.weight", "rdma.max", "misc.max":
		for line := range bytes.Lines(old) {
			line = bytes.TrimSpace(line)
			if name, _, _ := bytes.Cut(line, []byte(" ")); string(name) == key {
				return string(line)
			}
		}
		switch w.File {
		case "io.max":
			return key + " rbps=max wbps=max riops=max wiops=max"
		case "rdma.max":
			return key + " hca_handle=max hca_object=max"
		case "io.latency":
			return key + " target=0"
		case "misc.max":
			return key + " max"
		}
		return key + " default"
	}
	if value := string(bytes.TrimSpace(old)); value != "" {
		return value
	}
	return "\n" // an empty cpuset
}
