package main

import "fmt"

const usage = `vminitd is PID 1 of a microVM. Anywhere else it only serves:

  vminitd -listen unix:///run/vminit/rpc.sock -stream-listen unix:///run/vminit/stream.sock

Flags take one dash or two; a value follows after "=" or as the next argument.
In a guest they stand behind " -- " on the kernel command line. What cannot be
understood is logged and left out.

  -vsock-rpc-port PORT     control port (1025)
  -vsock-stream-port PORT  stream port (1026)
  -vsock-cid CID           address to listen on (3; -1 for any)
  -allow-local             accept peers inside the guest (CID 1) too
  -rpc MODE                listen, or dial the host once and serve there (listen)
  -stream-id FORM          how stream ids travel: u32 or string (u32)
  -listen unix:///PATH     control socket outside a VM
  -stream-listen unix:///PATH
                           stream socket outside a VM
  -events-forward PATH     ttrpc socket to send events to (also $TTRPC_ADDRESS)
  -cgroup-tree NAME        cgroup below which containers live (vminit)
  -idle-exit DURATION      end when there has been no container and no client for
                           so long (never)
  -idle-lock PATH          before that, take this file's lock, which clients share;
                           its directory is removed, and what is in the cgroup
                           of -cgroup-tree is killed at the start: that must be
                           this daemon's alone
  -ready-fd N              write a byte here when serving, or the reason why not
  -network SPEC            mac=M[,addr=CIDR][,addr=CIDR] or mac=M,dhcp=true; repeatable
  -config FILE             JSON: vsock_context_id rpc_port stream_port debug; flags win
  -log-format FORMAT       text or json (text)
  -stop-timeout SECONDS    from a container's stop signal to SIGKILL, at the end (5)
  -online-cpus             processors that are plugged in go online by themselves
  -debug                   log everything
  -debug-shell PORT        a shell of the guest for the host, on a vsock port (none)
  -dev                     accepted for other hosts' sake, without effect
  -dump-info               likewise
  -version                 print the version (outside a guest)
  -help                    print this (outside a guest)
`

// inform returns the text that the arguments ask for, if any. PID 1 has better
// things to do than to answer.
func inform(args []string) string {
	if len(args) == 0 {
		return ""
	}
	switch args[0] {
	case "-h", "-help", "--help":
		return usage
	case "-version", "--version":
		return fmt.Sprintf("vminitd %s\n", version)
	}
	return ""
}
