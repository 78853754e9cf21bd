// Package nsexec launches processes into namespaces with raw syscalls.
//
// A launch is compiled first and run afterwards. Callers append instructions
// (one syscall each) to a Program; Launcher.Start makes the child with one
// clone3(2) and the child, single-threaded and without any Go code, executes
// the instructions in assembly and ends in execve(2). What fails is reported
// as the index of the instruction and an errno, which the parent turns back
// into a sentence. Because a launch is data it can be printed, compared with a
// golden file and fuzzed without privileges.
//
// The package owns the programs, the clone3 call, the pidfd of every process
// it started, and the reaping of children and orphans. It knows nothing of
// cgroup files, mounts or the Task API, and it never runs os/exec: the Go heap
// is not inherited by forked children (MADV_DONTFORK), which only this
// package's interpreter can live without.
//
// Lock order: Launcher.fork before Launcher.mu before Process.mu.
package nsexec
