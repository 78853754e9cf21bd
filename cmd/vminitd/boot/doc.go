// Package boot brings a guest up from the moment the kernel runs PID 1: the
// root mount, the API filesystems, device links, limits, sysctls, the daemon's
// own cgroup and kernel modules.
//
// Each step is a plain function in its own file that does one thing and returns
// an error naming it; the Runner times it and decides what a failure means.
// Steps change the whole machine and belong in PID 1 of a virtual machine: the
// package must never be called anywhere else, and it knows nothing of the Task
// API, of containers or of how the machine goes down.
package boot
