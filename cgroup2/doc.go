// Package cgroup2 owns one directory in cgroupfs v2 per container: it makes it
// below the runtime's subtree, writes its limits, reads its counters, freezes
// and kills what runs inside, reports out-of-memory kills, attaches the device
// filter and removes it again.
//
// It must never start a process, never follow a path out of the subtree it was
// opened on (every access is by descriptor, with openat2's RESOLVE_BENEATH,
// RESOLVE_NO_SYMLINKS and RESOLVE_NO_XDEV), and never signal anything but
// members of the cgroup it was asked about.
//
// Limits are planned, then applied: [Plan] turns the specification's resources
// into a list of [Write] values without touching the kernel, [Cgroup.Apply]
// does the writes. Decoders of kernel text take bytes, not paths.
//
// The kernel interface is Documentation/admin-guide/cgroup-v2.rst of the Linux
// source; comments name the kernel version where a file is newer than 5.10, the
// oldest kernel this package is written for.
package cgroup2
