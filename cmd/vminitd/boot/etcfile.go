package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// EtcScratch is where files of a read-only /etc are.
const EtcScratch = "/run/vminit/etc"

// WriteEtc puts a small file into place, atomically where it can. On a read-only
// root file system it is written below scratch, a writable directory, and bound
// over path; where path does not exist there, its directory becomes an overlay.
func WriteEtc(path, content, scratch string) error {
	err := replaceFile(path, content)
	if err == nil || !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if overwrite(path, content) == nil { // it is bound already
		return nil
	}
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", scratch, err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := overlay(filepath.Dir(path), scratch); err != nil {
			return fmt.Errorf("make room for %s on a read-only file system: %w", path, err)
		}
		return replaceFile(path, content)
	}
	shadow := filepath.Join(scratch, filepath.Base(path))
	if err := replaceFile(shadow, content); err != nil {
		return err
	}
	if err := unix.Mount(shadow, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s over the read-only %s: %w", shadow, path, err)
	}
	return nil
}

// overwrite replaces the contents of a file that exists.
func overwrite(path, content string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

// overlay makes a directory writable whose file system is not.
func overlay(dir, scratch string) error {
	upper, work := filepath.Join(scratch, ".upper"), filepath.Join(scratch, ".work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount an overlay on %s: %w", dir, err)
	}
	// What was bound into the directory is covered now.
	shadows, err := os.ReadDir(scratch)
	if err != nil {
		return err
	}
	for _, s := range shadows {
		if !s.Type().IsRegular() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(scratch, s.Name()))
		if err == nil {
			err = replaceFile(filepath.Join(dir, s.Name()), string(content))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replaceFile writes beside path and renames, so that no reader sees half a
// file and a symbolic link at path is replaced rather than followed.
func replaceFile(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the directory of %s: %w", path, err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}
