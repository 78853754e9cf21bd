// Package report collects what a process can see of its surroundings:
// namespaces, mounts, credentials, limits, descriptors, cgroup and so on. The
// probe prints it as JSON inside a container and a test decodes it outside, so
// the types here are the contract between them. Collecting changes nothing.
package report

import "strings"

// Report is what was seen. A part that could not be read is empty and its
// error is in Errors under the part's JSON name.
type Report struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	Exe  string   `json:"exe"` // /proc/self/exe
	Cwd  string   `json:"cwd"` // as getcwd(2) says, "(unreachable)" included

	PID  int `json:"pid"`
	PPID int `json:"ppid"`
	PGID int `json:"pgid"`
	SID  int `json:"sid"`

	Init       string `json:"init"`       // /proc/1/exe
	Hostname   string `json:"hostname"`   // uname(2)
	Domainname string `json:"domainname"` // uname(2)
	Kernel     string `json:"kernel"`     // uname(2), release

	Namespaces map[string]uint64 `json:"namespaces"` // inode of /proc/self/ns/*
	UIDMap     string            `json:"uid_map"`
	GIDMap     string            `json:"gid_map"`
	Setgroups  string            `json:"setgroups"`
	TimeOffset string            `json:"timens_offsets"`

	UIDs   IDs   `json:"uids"`
	GIDs   IDs   `json:"gids"`
	Groups []int `json:"groups"` // sorted

	Capabilities Capabilities `json:"capabilities"`
	NoNewPrivs   bool         `json:"no_new_privs"`
	Seccomp      int          `json:"seccomp"`         // 0 none, 1 strict, 2 filter
	Filters      int          `json:"seccomp_filters"` // how many are stacked
	Label        string       `json:"label"`           // /proc/self/attr/current

	// Early tells that Signals, the NOFILE limit and closed standard
	// descriptors are as execve left them. It is false if the program was not
	// linked with -E vminit_probe_entry: the Go runtime has changed them then.
	Early bool `json:"early"`

	// Rlimits by name without RLIMIT_.
	Rlimits map[string]Rlimit `json:"rlimits"`

	Umask       int    `json:"umask"`
	OOMScoreAdj int    `json:"oom_score_adj"`
	Personality uint64 `json:"personality"`
	Scheduler   Sched  `json:"scheduler"`
	CPUs        []int  `json:"cpus"`        // affinity
	IOPriority  int    `json:"io_priority"` // class<<13 | level
	Keyring     string `json:"keyring"`     // description of the session keyring
	KeyringID   int    `json:"keyring_id"`
	THPDisabled bool   `json:"thp_disabled"`

	Signals Signals `json:"signals"`

	FDs        []FD        `json:"fds"`
	TTY        *TTY        `json:"tty"` // controlling terminal, if any
	Mounts     []Mount     `json:"mounts"`
	Cgroup     Cgroup      `json:"cgroup"`
	Devices    []Device    `json:"devices"` // everything in /dev
	Interfaces []Interface `json:"interfaces"`

	Sysctls map[string]string `json:"sysctls"` // those asked for
	Status  map[string]string `json:"status"`  // /proc/self/status
	Errors  map[string]string `json:"errors,omitempty"`
}

// IDs are user or group ids, as in credentials(7).
type IDs struct {
	Real      int `json:"real"`
	Effective int `json:"effective"`
	Saved     int `json:"saved"`
	FS        int `json:"fs"`
}

// Capabilities holds the five sets as names in numerical order.
type Capabilities struct {
	Effective   []string `json:"effective"`
	Permitted   []string `json:"permitted"`
	Inheritable []string `json:"inheritable"`
	Bounding    []string `json:"bounding"`
	Ambient     []string `json:"ambient"`
}

// Rlimit is one limit; no limit is the largest uint64.
type Rlimit struct {
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Sched is what sched_getattr(2) says.
type Sched struct {
	Policy   string `json:"policy"` // e.g. SCHED_OTHER
	Flags    uint64 `json:"flags"`
	Nice     int32  `json:"nice"`
	Priority uint32 `json:"priority"`
	Runtime  uint64 `json:"runtime"`  // ns
	Deadline uint64 `json:"deadline"` // ns
	Period   uint64 `json:"period"`   // ns
}

// Signals are sets of signals as names: SIGTERM, or SIG40.
type Signals struct {
	Blocked []string `json:"blocked"`
	Ignored []string `json:"ignored"`
	Pending []string `json:"pending"`
}

// FD is a descriptor that was inherited. What the Go runtime opened for itself
// is close-on-exec and thereby told apart.
type FD struct {
	FD     int    `json:"fd"`
	Target string `json:"target"` // /proc/self/fd/N
	Flags  int    `json:"flags"`  // F_GETFL
	Type   string `json:"type"`   // file, dir, char, block, fifo, socket, link, other
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Rows   int    `json:"rows,omitempty"` // of a terminal
	Cols   int    `json:"cols,omitempty"`
}

// TTY is the controlling terminal.
type TTY struct {
	Number     uint64 `json:"number"`     // device number
	Foreground int    `json:"foreground"` // process group
	Rows       int    `json:"rows"`
	Cols       int    `json:"cols"`
}

// Mount is one line of /proc/self/mountinfo, in its order. Octal escapes are
// undone, except in Raw.
type Mount struct {
	ID       int      `json:"id"`
	Parent   int      `json:"parent"`
	Dev      string   `json:"dev"` // major:minor
	Root     string   `json:"root"`
	Target   string   `json:"target"`
	Options  []string `json:"options"`
	Optional []string `json:"optional"` // propagation: shared:N, master:N...
	Type     string   `json:"type"`
	Source   string   `json:"source"`
	Super    []string `json:"super"`
	Raw      string   `json:"raw"`
}

// Cgroup is the process's cgroup (v2).
type Cgroup struct {
	Path     string            `json:"path"`     // /proc/self/cgroup, after "0::"
	Raw      string            `json:"raw"`      // all of it
	Visible  bool              `json:"visible"`  // /sys/fs/cgroup is a cgroup2
	Writable bool              `json:"writable"` // mounted read-write
	Files    map[string]string `json:"files"`    // readable files of the cgroup
}

// Device is an entry of /dev.
type Device struct {
	Path  string `json:"path"`
	Type  string `json:"type"`
	Mode  uint32 `json:"mode"` // permissions
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	Link  string `json:"link,omitempty"`
}

// Interface is a network interface of the network namespace.
type Interface struct {
	Name     string `json:"name"`
	Up       bool   `json:"up"`
	Loopback bool   `json:"loopback"`
	Flags    uint32 `json:"flags"`
}

// Mount returns the topmost mount at target, the last one of that name.
func (r *Report) Mount(target string) (Mount, bool) {
	for i := len(r.Mounts) - 1; i >= 0; i-- {
		if r.Mounts[i].Target == target {
			return r.Mounts[i], true
		}
	}
	return Mount{}, false
}

// Getenv returns the last value of an environment variable.
func (r *Report) Getenv(key string) (string, bool) {
	for i := len(r.Env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(r.Env[i], key+"="); ok {
			return v, true
		}
	}
	return "", false
}

// Device returns the entry of /dev with that path.
func (r *Report) Device(path string) (Device, bool) {
	for _, d := range r.Devices {
		if d.Path == path {
			return d, true
		}
	}
	return Device{}, false
}
