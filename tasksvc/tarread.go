package tasksvc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"vminit/internal/sys"
)

// tarReader reads an archive. Every error but the stream's own is ErrInvalid.
type tarReader struct {
	r    io.Reader
	left int64 // of the member's data
	pad  int64 // behind it
}

// next goes to the next member; io.EOF is the end of the archive.
func (t *tarReader) next() (*tarHeader, error) {
	pax, longName, longLink := map[string]string{}, "", ""
	for {
		if err := t.skip(); err != nil {
			return nil, err
		}
		b, err := t.block()
		if err != nil {
			return nil, err
		}
		if *b == ([tarBlock]byte{}) {
			return nil, io.EOF
		}
		h, err := parseUstar(b)
		if err != nil {
			return nil, err
		}
		t.left, t.pad = h.size, -h.size&(tarBlock-1)
		switch h.kind {
		case tarGlobal: // defaults for all: nobody puts what matters here into them
		case tarPax:
			data, err := t.records()
			if err == nil {
				err = parsePax(data, pax)
			}
			if err != nil {
				return nil, err
			}
		case tarLongName, tarLongLink:
			data, err := t.records()
			if err != nil {
				return nil, err
			}
			text := string(bytes.TrimRight(data, "\x00"))
			if h.kind == tarLongName {
				longName = text
			} else {
				longLink = text
			}
		default:
			if longName != "" {
				h.name = longName
			}
			if longLink != "" {
				h.link = longLink
			}
			return h, t.complete(h, pax)
		}
	}
}

// complete puts what pax records say into a header.
func (t *tarReader) complete(h *tarHeader, pax map[string]string) error {
	for key, value := range pax {
		var err error
		switch key {
		case "path":
			h.name = value
		case "linkpath":
			h.link = value
		case "size":
			h.size, err = parseSize(value)
		case "uid":
			h.uid, err = parseID(value)
		case "gid":
			h.gid, err = parseID(value)
		case "mtime":
			h.mtime, err = parseTime(value)
		default:
			if name, ok := strings.CutPrefix(key, paxXattr); ok {
				if h.xattrs == nil {
					h.xattrs = map[string]string{}
				}
				h.xattrs[name] = value
			}
		}
		if err != nil {
			return sys.Invalidf("tar: pax record %.64s: %w", key, err)
		}
	}
	if h.kind != tarRegular { // a hard link of some archivers has the size of its file
		h.size = 0
	}
	t.left, t.pad = h.size, -h.size&(tarBlock-1)
	if h.kind == tarRegular {
		if err := t.sparse(h, pax); err != nil {
			return err
		}
	}
	if len(h.name) > maxTarName || len(h.link) > maxTarName {
		return sys.Invalidf("tar: name %.64q... is longer than %d bytes", h.name, maxTarName)
	}
	if strings.IndexByte(h.name, 0) >= 0 || strings.IndexByte(h.link, 0) >= 0 {
		return sys.Invalidf("tar: name %.64q contains a NUL byte", h.name)
	}
	return nil
}

// sparse reads where a sparse file has its data.
func (t *tarReader) sparse(h *tarHeader, pax map[string]string) (err error) {
	var numbers []int64
	switch {
	case pax["GNU.sparse.major"] == "1" && pax["GNU.sparse.minor"] == "0":
		numbers, err = t.sparseMap()
	case pax["GNU.sparse.map"] != "":
		numbers, err = parseNumbers(strings.Split(pax["GNU.sparse.map"], ","))
		pax["GNU.sparse.realsize"] = pax["GNU.sparse.size"]
	default:
		for key := range pax {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return sys.Invalidf("tar: %.64q is sparse in a form that is not known", h.name)
			}
		}
		return nil
	}
	if err == nil {
		h.size, err = parseSize(pax["GNU.sparse.realsize"])
	}
	if err != nil {
		return sys.Invalidf("tar: sparse map of %.64q: %w", h.name, err)
	}
	h.sparse = true
	if name := pax["GNU.sparse.name"]; name != "" {
		h.name = name
	}
	if len(numbers)%2 != 0 || len(numbers) > 2*maxTarExtents {
		return sys.Invalidf("tar: sparse map of %.64q has %d numbers", h.name, len(numbers))
	}
	at := int64(0)
	for i := 0; i < len(numbers); i += 2 {
		e := extent{numbers[i], numbers[i+1]}
		if e.offset < at || e.length > h.size-e.offset {
			return sys.Invalidf("tar: sparse map of %.64q is not in order", h.name)
		}
		at = e.offset + e.length
		h.extents = append(h.extents, e)
	}
	if h.dataSize() != t.left {
		return sys.Invalidf("tar: %.64q has %d bytes of data, its map %d", h.name, t.left, h.dataSize())
	}
	return nil
}

// sparseMap reads the map in front of the data, in whole blocks.
func (t *tarReader) sparseMap() ([]int64, error) {
	var text []byte
	for have, want := 0, 1; have < want; {
		if t.left < tarBlock {
			return nil, errors.New("it does not end")
		}
		b, err := t.block()
		if err != nil {
			return nil, err
		}
		t.left -= tarBlock
		text = append(text, b[:]...)
		have += bytes.Count(b[:], []byte("\n"))
		if want == 1 && have > 0 { // the first line says how many follow
			line, _, _ := bytes.Cut(text, []byte("\n"))
			count, err := parseSize(string(line))
			if err != nil || count > maxTarExtents {
				return nil, fmt.Errorf("%.32q extents", line)
			}
			want = int(1 + 2*count)
		}
		if len(text) > (2*maxTarExtents+1)*20 {
			return nil, errors.New("it is too long")
		}
	}
	lines := strings.Split(string(text), "\n")
	count, _ := parseSize(lines[0])
	return parseNumbers(lines[1 : 1+2*count])
}

// Read reads data of the member.
func (t *tarReader) Read(p []byte) (int, error) {
	if t.left == 0 {
		return 0, io.EOF
	}
	n, err := t.r.Read(p[:min(int64(len(p)), t.left)])
	t.left -= int64(n)
	if err == io.EOF && t.left > 0 {
		err = errTruncated
	}
	return n, err
}

var errTruncated = sys.Invalidf("tar: the archive is cut off")

// skip goes to the end of the member.
func (t *tarReader) skip() error {
	n := t.left + t.pad
	t.left, t.pad = 0, 0
	if _, err := io.CopyN(io.Discard, t.r, n); err == io.EOF {
		return errTruncated
	} else if err != nil {
		return err
	}
	return nil
}

// block reads one block. An archive that ends without its two empty blocks is
// whole, as all tars have it.
func (t *tarReader) block() (*[tarBlock]byte, error) {
	var b [tarBlock]byte
	_, err := io.ReadFull(t.r, b[:])
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errTruncated
	}
	return &b, err
}

// records reads the data of a member that describes the next one.
func (t *tarReader) records() ([]byte, error) {
	if t.left > maxTarRecords {
		return nil, sys.Invalidf("tar: a header of %d bytes; at most %d are allowed", t.left, maxTarRecords)
	}
	data := make([]byte, t.left)
	if _, err := io.ReadFull(t, data); err != nil {
		return nil, errTruncated
	}
	return data, nil
}

// parseUstar decodes a header block of ustar, GNU or older archives.
func parseUstar(b *[tarBlock]byte) (*tarHeader, error) {
	var err error
	number := func(at, length int) (v int64) {
		if err == nil {
			v, err = parseField(b[at : at+length])
		}
		return v
	}
	text := func(at, length int) string {
		s, _, _ := bytes.Cut(b[at:at+length], []byte{0})
		return string(s)
	}
	sum := number(148, 8)
	if err != nil || sum != int64(checksum(b)) {
		return nil, sys.Invalidf("tar: a header has the wrong checksum: is this a tar archive, not compressed?")
	}
	h := &tarHeader{
		name: text(0, 100), link: text(157, 100), kind: b[156], mode: uint32(number(100, 8) & 0o7777),
		uid: uint32(number(108, 8)), gid: uint32(number(116, 8)), size: number(124, 12), mtime: time.Unix(number(136, 12), 0),
	}
	if string(b[257:263]) == "ustar\x00" {
		if prefix := text(345, 155); prefix != "" {
			h.name = prefix + "/" + h.name
		}
	}
	switch h.kind {
	case tarChar, tarBlockDev:
		h.major, h.minor = uint32(number(329, 8)), uint32(number(337, 8))
	case 0, '7':
		h.kind = tarRegular
		if strings.HasSuffix(h.name, "/") {
			h.kind = tarDir
		}
	}
	if err != nil {
		return nil, sys.Invalidf("tar: header of %.64q: %w", h.name, err)
	}
	return h, nil
}

// parseField decodes a number: octal, or GNU's base 256.
func parseField(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		v := int64(b[0] & 0x7f)
		for _, c := range b[1:] {
			if v > math.MaxInt64>>10 { // so that sizes can be added up
				return 0, errors.New("a number is too large")
			}
			v = v<<8 | int64(c)
		}
		return v, nil
	}
	s := string(bytes.Trim(b, " \x00"))
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(s, 8, 62)
	return int64(v), err
}

// parsePax decodes pax records.
func parsePax(data []byte, pax map[string]string) error {
	for len(data) > 0 {
		length, _, ok := bytes.Cut(data, []byte(" "))
		n, err := strconv.ParseUint(string(length), 10, 31)
		if !ok || err != nil || int(n) <= len(length)+1 || int(n) > len(data) || data[n-1] != '\n' {
			return sys.Invalidf("tar: malformed pax record %.32q", data)
		}
		key, value, ok := strings.Cut(string(data[len(length)+1:n-1]), "=")
		if !ok || key == "" {
			return sys.Invalidf("tar: malformed pax record %.32q", data[:n])
		}
		pax[key] = value
		data = data[n:]
	}
	return nil
}

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 62)
	return int64(n), err
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

func parseNumbers(fields []string) (numbers []int64, err error) {
	for _, f := range fields {
		n, err := parseSize(f)
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// parseTime decodes seconds with a decimal fraction.
func parseTime(s string) (time.Time, error) {
	whole, fraction, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 50)
	if err != nil {
		return time.Time{}, err
	}
	var ns uint64
	if fraction != "" {
		if ns, err = strconv.ParseUint((fraction + "000000000")[:9], 10, 30); err != nil {
			return time.Time{}, err
		}
		if strings.HasPrefix(whole, "-") {
			return time.Unix(sec, -int64(ns)), nil
		}
	}
	return time.Unix(sec, int64(ns)), nil
}
