package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/vsockstream"
)

// schemeFDs names stdio that a client on this machine has handed over:
//
//	fds://ID[?listen=N]
//
// for stdin, stdout and stderr alike. ID is a stream that came with descriptors
// (vsockstream.OpenWithFDs). They become the process's own 0, 1, 2, and what
// follows its 3 and on. With a terminal the first is instead a unix socket that
// gets the pty's master by SCM_RIGHTS, and the others become 3 and on. listen
// says how many of those from 3 on are sockets to be announced as LISTEN_FDS.
//
// The stream itself carries no bytes: that of an exec stands for the client.
// When the client closes it, an exec that has ended is forgotten.
const schemeFDs = "fds://"

// handover is what came that way. It is for the goroutine that launches the
// process; nil is none.
type handover struct {
	stream *vsockstream.Stream
	fds    []int
	stdio  int // how many of fds are stdio, or the console socket
	listen int
}

// takeHandover claims the stream, if the URIs name one.
func takeHandover(ctx context.Context, hub *vsockstream.Hub, uris stdioURIs) (_ *handover, err error) {
	rest, ok := strings.CutPrefix(uris.stdin, schemeFDs)
	if !ok {
		return nil, nil
	}
	if uris.stdout != uris.stdin || uris.stderr != uris.stdin {
		return nil, sys.Invalidf("stdin, stdout and stderr must be the same fds:// URI")
	}
	if hub == nil {
		return nil, sys.Unsupportedf("no stream listener is configured")
	}
	h := &handover{stdio: 3}
	if uris.terminal {
		h.stdio = 1
	}
	id, query, _ := strings.Cut(rest, "?")
	if h.listen, err = parseListen(query); err != nil {
		return nil, fmt.Errorf("stdio %s: %w", uris.stdin, err)
	}
	conn, err := hub.Claim(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("stdio %s: %w", uris.stdin, err)
	}
	h.stream = conn.(*vsockstream.Stream)
	h.fds = h.stream.TakeFDs()
	if len(h.fds) < h.stdio+h.listen {
		h.close()
		return nil, sys.Invalidf("stdio %s: %d descriptors came, at least %d are needed", uris.stdin, len(h.fds), h.stdio+h.listen)
	}
	return h, nil
}

func parseListen(query string) (int, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return 0, sys.Mark(sys.ErrInvalid, err)
	}
	text := values.Get("listen")
	values.Del("listen")
	if len(values) > 0 {
		return 0, sys.Invalidf("%q: only listen=N is known", query)
	}
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		return 0, sys.Invalidf("listen=%s is not a number below 256", text)
	}
	return int(n), nil
}

// files are the descriptors that become 3 and on.
func (h *handover) files() []int {
	if h == nil {
		return nil
	}
	return h.fds[h.stdio:]
}

// environ is the process with what socket activation says to it,
// sd_listen_fds(3). The process is the first of a pid namespace as a rule, and
// is told so even if it is not, as runc does.
func (h *handover) environ(p *specs.Process) *specs.Process {
	if h == nil || h.listen == 0 || p == nil {
		return p
	}
	told := *p
	told.Env = append(append([]string{}, p.Env...), "LISTEN_FDS="+strconv.Itoa(h.listen), "LISTEN_PID=1")
	return &told
}

// own gives stdio to the process's user, if that is not root, so that it can
// open /dev/stdout again. Nobody but a file's owner may refuse: then it keeps it.
func (h *handover) own(uid uint32) error {
	for i, fd := range h.fds[:h.stdio] {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("fstat of fd %d: %w", i, err)
		}
		if uid == 0 || st.Uid == uid || st.Rdev == unix.Mkdev(1, 3) { // /dev/null is everybody's
			continue
		}
		switch err := unix.Fchown(fd, int(uid), -1); err {
		case nil, unix.EPERM, unix.EINVAL, unix.EROFS:
		default:
			return fmt.Errorf("fchown of fd %d: %w", i, err)
		}
	}
	return nil
}

// passConsole sends the master of a terminal of the given size to the client
// and closes it here, so that only the client has it.
func (h *handover) passConsole(master int, size *specs.Box) error {
	defer unix.Close(master)
	if size != nil {
		if err := setSize(master, uint32(size.Width), uint32(size.Height)); err != nil {
			return err
		}
	}
	// The bytes beside it are its name, which runc's readers take.
	err := unix.Sendmsg(h.fds[0], []byte("/dev/ptmx"), unix.UnixRights(master), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if errors.Is(err, unix.ENOTSOCK) {
		return sys.Invalidf("console socket: the descriptor is not a socket")
	}
	if err != nil {
		return fmt.Errorf("send the terminal over the console socket: %w", err)
	}
	return nil
}

// closeFDs closes the descriptors once the process has them.
func (h *handover) closeFDs() {
	if h == nil {
		return
	}
	for _, fd := range h.fds {
		unix.Close(fd)
	}
	h.fds = nil
}

// close ends the handover. Safe to call twice.
func (h *handover) close() {
	if h == nil {
		return
	}
	h.closeFDs()
	h.stream.Close()
}

// forgetWhenLeft forgets an exec that has ended when its client is gone, which
// need not ask for it.
func (c *container) forgetWhenLeft(p *process, stream *vsockstream.Stream) {
	_, _ = io.Copy(io.Discard, stream)
	stream.Close()
	<-p.exited
	_ = c.deleteExec(context.Background(), p) // it may be deleted already
}
