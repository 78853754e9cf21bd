// Package microvm runs one QEMU virtual machine with vminitd as its PID 1.
//
// The process that calls [Boot] owns the machine: the QEMU child, the vsock
// device when the kernel has none, the console and a state directory through
// which other processes find the machine ([Find], [List]) and talk to it. The
// machine ends with its owner, however the owner ends: QEMU has a parent death
// signal, the state directory is locked, and a lock nobody holds marks what was
// left behind, which the next one to look removes.
//
// The package must never leave anything behind when it fails, believe a length
// that came from QEMU or the guest, or wait for a guest without watching QEMU.
//
// A machine is planned, then run: commandLine is a pure function of a checked
// Config, so what QEMU gets is golden-tested without QEMU.
package microvm
