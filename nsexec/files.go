package nsexec

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// files are descriptors of the parent's that the user's program finds open from
// 3 on, as those of socket activation or of runc's --preserve-fds.
//
// They keep numbers above all of their destinations until the container is
// built: everything that is opened meanwhile gets the lowest free numbers, which
// are the destinations. Then each is moved, over whatever is there by then.
type files struct {
	n    int   // how many
	nums Arg   // their numbers in the child, 64 bits each
	fds  []int // the parent's, from BindFiles
}

// PassFiles announces n of them. It comes first in a program; BindFiles says
// which they are.
func (p *Program) PassFiles(n int) {
	if n > 0 {
		p.files = files{n: n, nums: p.Buffer(8 * n)}
	}
}

// BindFiles says which of the parent's descriptors are the files announced by
// PassFiles. They stay the caller's, who keeps them open until Start has
// returned.
func (p *Program) BindFiles(fds []int) { p.files.fds = fds }

// placeFiles moves the files to 3, 4 and on.
func (p *Program) placeFiles() {
	if p.files.n == 0 {
		return
	}
	p.Step("pass %d files on", p.files.n)
	r := p.tmp()
	for i := range p.files.n {
		p.Load(r, p.files.nums.Plus(8*i))
		p.Call(unix.SYS_DUP3, r.Arg(), Int(3+i), Int(0))
	}
}

// keepClear moves the descriptor in r to a number that no file is moved to.
func (p *Program) keepClear(r Reg) {
	if p.files.n > 0 {
		p.Call(unix.SYS_FCNTL, r.Arg(), Int(unix.F_DUPFD_CLOEXEC), Int(3+p.files.n)).Store(r)
	}
}

// raise duplicates fd to a number that no file is moved to. The caller closes it.
func (p *Program) raise(fd int) (int, error) {
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3+p.files.n)
	if err != nil {
		return -1, fmt.Errorf("duplicate a descriptor above %d (is RLIMIT_NOFILE large enough?): %w", 3+p.files.n, err)
	}
	return high, nil
}

// raiseFiles duplicates the files for the time of a launch and tells the child
// their numbers. The caller closes them, also after an error.
func (p *Program) raiseFiles() (fds []int, err error) {
	f := &p.files
	if len(f.fds) != f.n {
		return nil, fmt.Errorf("launch program: %d files are bound, not %d", len(f.fds), f.n)
	}
	nums := make([]byte, 8*f.n)
	for i, fd := range f.fds {
		high, err := p.raise(fd)
		if err != nil {
			return fds, err
		}
		fds = append(fds, high)
		putWord(nums[8*i:], uint64(high))
	}
	if f.n == 0 {
		return nil, nil
	}
	return fds, p.Write(f.nums, nums)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
