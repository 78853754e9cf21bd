package tasksvc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	guestapi "vminit/api/services/guest/v1"
)

// maxKernelRecord is the most that /dev/kmsg gives for one record:
// CONSOLE_EXT_LOG_MAX, later PRINTK_MESSAGE_MAX, is smaller.
const maxKernelRecord = 16 << 10

// KernelLog implements Guest.KernelLog.
func (g *Guest) KernelLog(ctx context.Context, r *guestapi.KernelLogRequest, stream guestapi.TTRPCGuest_KernelLogServer) error {
	return guardStream(g.cfg.Logger, "Guest.KernelLog", func() error {
		f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		wake := func() { _ = f.SetReadDeadline(time.Unix(1, 0)) }
		defer context.AfterFunc(ctx, wake)()
		defer context.AfterFunc(g.closed, wake)()
		buf := make([]byte, maxKernelRecord)
		for {
			n, err := readKernelRecord(f, buf, r.Follow)
			if err != nil || n == 0 {
				return errors.Join(ctx.Err(), err)
			}
			record, err := parseKernelRecord(buf[:n])
			if err != nil {
				return err
			}
			if record.Sequence < r.FromSequence {
				continue
			}
			if err := stream.Send(record); err != nil {
				return err
			}
		}
	})
}

// readKernelRecord reads the next record there is; records that the kernel has
// overwritten meanwhile (EPIPE) are passed over. If there is none it waits, or
// returns 0.
func readKernelRecord(f *os.File, buf []byte, wait bool) (n int, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	err = rc.Read(func(fd uintptr) bool {
		for {
			n, readErr = unix.Read(int(fd), buf)
			switch readErr {
			case unix.EINTR, unix.EPIPE:
				continue
			case unix.EAGAIN:
				n, readErr = 0, nil
				return !wait
			}
			return true
		}
	})
	if err == nil && readErr != nil {
		err = fmt.Errorf("read /dev/kmsg: %w", readErr)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil // the call, or the daemon, has ended
	}
	return max(n, 0), err
}

// parseKernelRecord decodes "6,339,5140900,-;text\n KEY=value\n"
// (Documentation/ABI/testing/dev-kmsg). What future kernels put behind the
// fourth field is passed over, as it says.
func parseKernelRecord(data []byte) (*guestapi.KernelLogRecord, error) {
	head, rest, ok := bytes.Cut(data, []byte(";"))
	fields := bytes.SplitN(head, []byte(","), 4)
	if !ok || len(fields) < 3 {
		return nil, fmt.Errorf("kernel log: record %.64q cannot be understood", data)
	}
	var n [3]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(string(fields[i]), 10, 64); err != nil {
			return nil, fmt.Errorf("kernel log: record %.64q: %w", data, err)
		}
	}
	text, more, _ := bytes.Cut(rest, []byte("\n"))
	r := &guestapi.KernelLogRecord{
		Level: uint32(n[0] & 7), Facility: uint32(n[0] >> 3), Sequence: n[1], TimestampUs: n[2], Text: validText(text),
	}
	for line := range bytes.Lines(more) {
		key, value, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte("="))
		if key, isField := bytes.CutPrefix(key, []byte(" ")); ok && isField {
			if r.Fields == nil {
				r.Fields = map[string]string{}
			}
			r.Fields[validText(key)] = validText(value)
		}
	}
	return r, nil
}

// validText makes a proto3 string of bytes.
func validText(b []byte) string { return string(bytes.ToValidUTF8(b, []byte("\uFFFD"))) }
