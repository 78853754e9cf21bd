package devices

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// onlineCPU switches a processor on (Documentation/core-api/cpu_hotplug). One
// that is online, or has been taken out again, is fine.
func onlineCPU(sysfs, devpath string) error {
	f, err := os.OpenFile(filepath.Join(sysfs, devpath, "online"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("1")
	return errors.Join(err, f.Close())
}
