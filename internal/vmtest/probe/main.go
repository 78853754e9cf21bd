// Command probe is what tests run inside containers: it prints what it sees as
// JSON, and it is a collection of small workloads with a known behaviour. It is
// one static binary, needs nothing but the kernel, and starts in a millisecond
// or two. Run "probe --help" for the commands.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/vmtest/probe/report"
)

// command is one thing the probe can do. run returns the exit status.
type command struct {
	name, args string
	help       string
	run        func(c *invocation) int
}

// invocation is a command line being carried out.
type invocation struct {
	command
	flags *flag.FlagSet
	argv  []string // after the command's name, flags still in it
}

// Exit statuses besides those a command is told to use.
const (
	exitFailed = 1
	exitUsage  = 2
)

func commands() []command {
	return []command{
		{"report", "[-sysctl NAME]... [-indent]",
			"Print a JSON object of everything that can be seen: namespaces, mounts, credentials,\n" +
				"limits, descriptors, cgroup, devices, signals... (package report). Without any\n" +
				"command this is what the probe does.", runReport},
		{"exit", "N", "Exit with status N.", runExit},
		{"sleep", "[-ignore SIG,...] [DURATION]",
			"Sleep, forever without DURATION (e.g. 10s). As PID 1, TERM, INT and HUP end it\n" +
				"with status 128+N; else they kill it. -ignore makes it ignore signals.", runSleep},
		{"burst", "[-stderr] [-chunk BYTES] [-exit N] BYTES",
			"Write BYTES of a known pattern (package pattern) to stdout, then exit at once.", runBurst},
		{"sum", "", "Read stdin to its end, print {\"bytes\":N,\"sha256\":\"...\"}.", runSum},
		{"echo", "[WORD...]", "Print the words, or without any copy stdin to stdout until it ends.", runEcho},
		{"ask", "SOCKET", "Connect to a unix socket or tcp://HOST:PORT, send it stdin and print what comes back.", runAsk},
		{"write", "[-append] FILE [TEXT]", "Write TEXT, or stdin, to FILE. Prints {\"bytes\":N} or {\"errno\":\"EROFS\"}.", runWrite},
		{"spin", "[-threads N] [DURATION]", "Use the CPU, forever without DURATION, with N threads (1).", runSpin},
		{"forkbomb", "[-hold DURATION] N",
			"Fork until N children live or fork fails; print {\"started\":K,\"errno\":\"EAGAIN\"},\n" +
				"hold them that long (0), kill and reap them.", runForkbomb},
		{"orphans", "[-for DURATION] [-exit N] COUNT",
			"Leave COUNT orphans to PID 1 that exit after DURATION (0) with status N (0).\n" +
				"Prints {\"pids\":[...]}. The probe itself exits once they are on their own.", runOrphans},
		{"flood", "COUNT",
			"Leave COUNT orphans to PID 1, 200 at a time, that exit at once with every status there is.\n" +
				"Prints {\"orphans\":N} once all have been made.", runFlood},
		{"eatmem", "[-hold DURATION] [-populate] BYTES",
			"Map and touch BYTES of memory (suffix K, M, G), or have the kernel fill it, print {\"bytes\":N}, hold it.", runEatmem},
		{"hold-stdout", "[-for DURATION] [-exit N]",
			"Print the pid of a child that keeps stdout and stderr open for DURATION (forever),\n" +
				"and exit.", runHoldStdout},
		{"signal-report", "[-count N]",
			"Print \"ready\", then the name of each signal that arrives, on a line of its own.\n" +
				"Exit after N (never).", runSignalReport},
		{"fuse", "DIR",
			"Mount at DIR, as PID 1 sees it, a file system that never answers. Prints \"ready\",\n" +
				"and \"stuck\" when somebody waits for it. TERM unmounts it and ends it.", runFuse},
		{"vsock-copy", "PORT BYTES",
			"Listen on a vsock port; to each that connects send what \"burst BYTES\" writes.", runVsockCopy},
		{"canary", "DIR", "Print what no container may change of a guest whose root is at DIR and whose /proc is ours.", runCanary},
		{"swap", "[-for DURATION] A B",
			"Print \"swapping\", then exchange two names as fast as can be until SIGTERM. Prints {\"swaps\":N}.", runSwap},
		{"stalk", "[-stop|-files]",
			"Print \"stalking\", then until SIGTERM trace every process that others put into this pid namespace,\n" +
				"or stop it, or open its files in /proc. Prints what came of it.", runStalk},
		{"keyring", "NAME [WORD]", "Join or make a session keyring by name, let everybody in, keep WORD in it, stay.", runKeyring},
		{"try", "ATTEMPT...",
			"Attempt forbidden things and print how each went, as {\"mount\":\"EPERM\",...} with\n" +
				"\"ok\" for success. \"try list\" lists them. Also: open:PATH, openw:PATH, mkdir:PATH,\n" +
				"unlink:PATH, socket:FAMILY,TYPE, vsock:CID,PORT, and nr:N[,ARG...] for any syscall by number.", runTry},
	}
}

func main() {
	name, argv := "report", []string(nil)
	if len(os.Args) > 1 {
		name, argv = os.Args[1], os.Args[2:]
	}
	switch name {
	case "help", "-h", "-help", "--help":
		usage(os.Stdout)
		return
	}
	for _, c := range commands() {
		if c.name == name {
			inv := &invocation{command: c, flags: flag.NewFlagSet(name, flag.ContinueOnError), argv: argv}
			inv.flags.Usage = func() { fmt.Fprintf(os.Stderr, "usage: probe %s %s\n\n%s\n", c.name, c.args, c.help) }
			os.Exit(c.run(inv))
		}
	}
	fmt.Fprintf(os.Stderr, "probe: unknown command %q: see probe --help\n", name)
	os.Exit(exitUsage)
}

func usage(w io.Writer) {
	fmt.Fprint(w, "usage: probe [COMMAND [ARG...]]\n\nCommands, flags first:\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "\n  %s\n      %s\n", strings.TrimSpace(c.name+" "+c.args), strings.ReplaceAll(c.help, "\n", "\n      "))
	}
	fmt.Fprint(w, "\nStatus: 0, what a command is told, 1 for a failure, 2 for a wrong command line.\n")
}

// parse reads the flags and checks how many words follow. It exits on a wrong
// command line, and on -h.
func (c *invocation) parse(minArgs, maxArgs int) []string {
	err := c.flags.Parse(c.argv)
	switch n := c.flags.NArg(); {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case err != nil:
		os.Exit(exitUsage)
	case n < minArgs, maxArgs >= 0 && n > maxArgs:
		c.flags.Usage()
		os.Exit(exitUsage)
	}
	return c.flags.Args()
}

// wrong ends the program because an argument is not what it should be.
func (c *invocation) wrong(what string, err error) {
	fmt.Fprintf(os.Stderr, "probe %s: %s: %v\n", c.name, what, err)
	os.Exit(exitUsage)
}

// number is a decimal integer argument.
func (c *invocation) number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		c.wrong("number", err)
	}
	return n
}

// bytes is a size argument with an optional K, M or G (powers of 1024).
func (c *invocation) bytes(s string) int64 {
	digits, shift := s, 0
	if i := strings.IndexAny(s, "KMG"); i >= 0 && i == len(s)-1 {
		digits, shift = s[:i], 10*(1+strings.IndexByte("KMG", s[i]))
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err == nil && (n < 0 || n > 1<<62>>shift) {
		err = strconv.ErrRange
	}
	if err != nil {
		c.wrong("size "+strconv.Quote(s), err)
	}
	return n << shift
}

// result prints v as one line of JSON and returns the exit status.
func (c *invocation) result(v any) int {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		fmt.Fprintf(os.Stderr, "probe %s: %v\n", c.name, err)
		return exitFailed
	}
	return 0
}

// errname is the name of the errno in err, "ok" for nil.
func errname(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case !errors.As(err, &errno):
		return err.Error()
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return strconv.Itoa(int(errno))
}

func runReport(c *invocation) int {
	var sysctls []string
	c.flags.Func("sysctl", "", func(s string) error { sysctls = append(sysctls, s); return nil })
	indent := c.flags.Bool("indent", false, "")
	c.parse(0, 0)
	enc := json.NewEncoder(os.Stdout)
	enc.SetEscapeHTML(false)
	if *indent {
		enc.SetIndent("", "  ")
	}
	if err := enc.Encode(report.Collect(sysctls)); err != nil {
		fmt.Fprintf(os.Stderr, "probe report: %v\n", err)
		return exitFailed
	}
	return 0
}
