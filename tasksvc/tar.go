package tasksvc

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A tar codec of our own: what copying files into and out of containers needs,
// in a sixth of the bytes that archive/tar would add to the daemon. It reads
// and writes POSIX.1-2001 archives (pax(1), "pax Interchange Format"), reads GNU
// tar's long names, and has sparse files in GNU's pax formats 0.1 and 1.0.

const (
	tarBlock = 512

	// Bounds on what a header may hold, in bytes and numbers.
	maxTarRecords = 1 << 20
	maxTarName    = 4096 // PATH_MAX
	maxTarExtents = 1 << 14
)

// Types of members.
const (
	tarRegular  = '0'
	tarHardLink = '1'
	tarSymlink  = '2'
	tarChar     = '3'
	tarBlockDev = '4'
	tarDir      = '5'
	tarFifo     = '6'
	tarPax      = 'x'
	tarGlobal   = 'g'
	tarLongName = 'L'
	tarLongLink = 'K'
)

// tarHeader describes a member.
type tarHeader struct {
	name, link   string
	kind         byte
	mode         uint32 // permission bits with setuid, setgid and sticky
	uid, gid     uint32
	major, minor uint32
	size         int64 // of the file; of a sparse one including its holes
	mtime        time.Time
	xattrs       map[string]string
	extents      []extent // where a sparse file has data
	sparse       bool
}

// extent is a piece of a file.
type extent struct{ offset, length int64 }

// dataSize is how many bytes of the file are in the archive.
func (h *tarHeader) dataSize() int64 {
	if !h.sparse {
		return h.size
	}
	var n int64
	for _, e := range h.extents {
		n += e.length
	}
	return n
}

// paxTime is how pax records have a time.
func paxTime(t time.Time) string {
	s := strconv.FormatInt(t.Unix(), 10)
	if ns := t.Nanosecond(); ns > 0 && t.Unix() >= 0 {
		s += strings.TrimRight(fmt.Sprintf(".%09d", ns), "0")
	}
	return s
}

const paxXattr = "SCHILY.xattr."

// tarWriter writes an archive.
type tarWriter struct {
	w    io.Writer
	left int64 // of the member's data
	pad  int64 // behind it
}

// header begins a member. The data that follows, of a sparse file that of its
// extents, must be written in full.
func (t *tarWriter) header(h *tarHeader) error {
	if t.left > 0 {
		return fmt.Errorf("tar: %d bytes of the member before are missing", t.left)
	}
	size, name, prefix := h.dataSize(), h.name, ""
	if h.kind != tarRegular {
		size = 0
	}
	pax := map[string]string{}
	if h.sparse {
		prefix = sparseMap(h.extents)
		size += int64(len(prefix))
		pax["GNU.sparse.major"], pax["GNU.sparse.minor"] = "1", "0"
		pax["GNU.sparse.name"], pax["GNU.sparse.realsize"] = h.name, strconv.FormatInt(h.size, 10)
		name = "GNUSparseFile.0/" + name[strings.LastIndexByte(name, '/')+1:]
	}
	for key, value := range h.xattrs {
		pax[paxXattr+key] = value
	}
	if h.mtime.Nanosecond() != 0 || h.mtime.Unix() < 0 {
		pax["mtime"] = paxTime(h.mtime)
	}
	block := ustar(h, name, size, pax)
	if len(pax) > 0 {
		records := paxRecords(pax)
		ext := ustar(&tarHeader{kind: tarPax, mode: 0o644}, "PaxHeaders.0/x", int64(len(records)), nil)
		if err := t.raw(ext[:], records, padding(int64(len(records)))); err != nil {
			return err
		}
	}
	t.left, t.pad = size-int64(len(prefix)), -size&(tarBlock-1)
	return t.raw(block[:], []byte(prefix), t.padIfDone())
}

// Write writes data of the member.
func (t *tarWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > t.left {
		return 0, fmt.Errorf("tar: %d bytes too many", int64(len(p))-t.left)
	}
	n, err := t.w.Write(p)
	t.left -= int64(n)
	if err == nil {
		err = t.raw(t.padIfDone())
	}
	return n, err
}

func (t *tarWriter) padIfDone() []byte {
	if t.left > 0 {
		return nil
	}
	pad := t.pad
	t.pad = 0
	return make([]byte, pad)
}

// close ends the archive.
func (t *tarWriter) close() error { return t.raw(make([]byte, 2*tarBlock)) }

func (t *tarWriter) raw(pieces ...[]byte) error {
	for _, p := range pieces {
		if len(p) > 0 {
			if _, err := t.w.Write(p); err != nil {
				return err
			}
		}
	}
	return nil
}

func padding(n int64) []byte { return make([]byte, -n&(tarBlock-1)) }

// paxRecords encodes "LENGTH KEY=VALUE\n", where LENGTH counts itself.
func paxRecords(pax map[string]string) []byte {
	var b []byte
	for _, key := range slices.Sorted(maps.Keys(pax)) {
		rest := " " + key + "=" + pax[key] + "\n"
		n := len(rest) + 1
		for n != len(rest)+len(strconv.Itoa(n)) {
			n = len(rest) + len(strconv.Itoa(n))
		}
		b = append(b, strconv.Itoa(n)+rest...)
	}
	return b
}

// sparseMap encodes the extents as GNU's pax format 1.0 has them in front of
// the data.
func sparseMap(extents []extent) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d\n", len(extents))
	for _, e := range extents {
		fmt.Fprintf(&b, "%d\n%d\n", e.offset, e.length)
	}
	b.Write(padding(int64(b.Len())))
	return b.String()
}

// ustar encodes a header block; what does not fit into it goes into pax.
func ustar(h *tarHeader, name string, size int64, pax map[string]string) (b [tarBlock]byte) {
	text := func(at, length int, s, key string) {
		if len(s) > length || strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 || r == 0 }) {
			if pax[key] == "" {
				pax[key] = s
			}
			s = s[:min(len(s), length)]
		}
		copy(b[at:at+length], s)
	}
	number := func(at, length int, v uint64, key string) {
		s := strconv.FormatUint(v, 8)
		if len(s) > length-1 {
			if key != "" {
				pax[key] = strconv.FormatUint(v, 10)
			}
			s = "0"
		}
		copy(b[at:at+length-1], strings.Repeat("0", length-1-len(s))+s)
	}
	if h.sparse { // its name is in a record of its own
		text(0, 100, name[:min(len(name), 100)], "")
	} else {
		text(0, 100, name, "path")
	}
	number(100, 8, uint64(h.mode&0o7777), "")
	number(108, 8, uint64(h.uid), "uid")
	number(116, 8, uint64(h.gid), "gid")
	number(124, 12, uint64(size), "size")
	number(136, 12, uint64(max(h.mtime.Unix(), 0)), "mtime")
	b[156] = h.kind
	text(157, 100, h.link, "linkpath")
	copy(b[257:], "ustar\x0000")
	number(329, 8, uint64(h.major), "")
	number(337, 8, uint64(h.minor), "")
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", checksum(&b)))
	return b
}

// checksum adds up a header block, its own field taken as blanks.
func checksum(b *[tarBlock]byte) (sum int) {
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	return sum
}
