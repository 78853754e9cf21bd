// Package rootfs builds a container's file system.
//
// Two halves. Compile turns root, mounts, devices, masked and read-only paths
// of a runtime-spec config into instructions of an nsexec.Program, which the
// container's first process executes in its own mount namespace before it
// pivots into it. Assemble (assemble.go) mounts, in the daemon's namespace and
// before that, what the host named in the Task API's Create: images, overlays,
// block devices.
//
// Everything below the container's root is resolved with openat2(2)
// RESOLVE_IN_ROOT and used by fd: the image is hostile, and no path is resolved
// twice (CVE-2021-30465, CVE-2024-45310, CVE-2025-52881). The package keeps no
// state and never enters a container itself.
package rootfs
