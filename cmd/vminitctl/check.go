package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vminit/internal/kcheck"
	"vminit/internal/sys"
	"vminit/nsexec"
)

// newVM is what --vm is without a name. No VM can be called so.
const newVM = "*"

type checkOptions struct {
	machineOptions
	vm          string
	conformance bool
	inside      string // we are the process of a container: which look is wanted
	binary      string // this program, for the guest
}

// checkReport is what check --json prints.
type checkReport struct {
	Kernel      string           `json:"kernel"`
	Arch        string           `json:"arch"`
	Features    []kcheck.Row     `json:"features"`
	Conformance []conformanceRow `json:"conformance,omitempty"`
}

func newCheckCommand(g *globals) *cobra.Command {
	o := new(checkOptions)
	cmd := &cobra.Command{
		Use:   "check [--vm [NAME]] [--conformance]",
		Short: "Probe what the kernel has of what vminitd needs and containers want",
		Long: `Probe this kernel, feature by feature: the version of Linux that brought it,
whether it works and with which error not, whether vminitd requires it, and what
cannot be done without it. Nothing is changed, and no module is loaded. "denied"
means that permission was refused, so that nobody can tell; as root there is
less of that.

With --vm the guest's kernel is probed, from a container that may do anything:
in a VM that boots for it, or in the one named.

With --conformance containers are made, each with a config that uses features
the kernel has, and say what they see of them inside: in the guest with --vm,
otherwise through the daemon of --address.

The exit status is 1 if a required feature is missing, or one that the kernel
has did not show in a container.`,
		Example: `  vminitctl check
  vminitctl check --vm
  vminitctl check --vm v1 --conformance --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.inside != "" {
				return lookInside(cmd.OutOrStdout(), o.inside)
			}
			if len(args) == 1 {
				if o.vm != newVM {
					return sys.Invalidf("check: unexpected argument %q; a VM is named with --vm NAME", args[0])
				}
				o.vm = args[0]
			}
			return o.run(cmd.Context(), g, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.vm, "vm", "", "probe in a guest: in the VM of that `NAME`, or in one that boots for it")
	f.Lookup("vm").NoOptDefVal = newVM
	f.BoolVar(&o.conformance, "conformance", false, "make containers that use the features and see whether they show inside")
	f.StringVar(&o.inside, "inside", "", "what a container looks at")
	f.StringVar(&o.binary, "binary", "", "vminitctl for the guest (default: this one)")
	for _, name := range []string{"inside", "binary"} {
		_ = f.MarkHidden(name) // fails only for a flag that does not exist
	}
	o.machineOptions.register(f)
	return cmd
}

// run probes, and fails if something is missing that must not be.
func (o *checkOptions) run(ctx context.Context, g *globals, w io.Writer) error {
	var r checkReport
	var err error
	if o.vm == "" && !o.conformance {
		r, err = checkHere()
	} else {
		r, err = o.checkByContainer(ctx, g)
	}
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if g.json {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		_, err = io.WriteString(w, r.text())
	}
	if err != nil {
		return err
	}
	if err := kcheck.Verdict(r.Features); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return conformanceVerdict(r.Conformance)
}

// checkHere probes the kernel that runs this program.
func checkHere() (checkReport, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return checkReport{}, fmt.Errorf("uname: %w", err)
	}
	l, err := nsexec.NewLauncher()
	if err != nil {
		return checkReport{}, err
	}
	rows, err := kcheck.Run(l)
	return checkReport{Kernel: unix.ByteSliceToString(u.Release[:]), Arch: runtime.GOARCH, Features: rows}, err
}

// text is the report as a table.
func (r checkReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Linux %s (%s)\n\n", r.Kernel, r.Arch)
	rows := [][]string{{"FEATURE", "SINCE", "NEED", "HERE", ""}}
	counts := map[kcheck.Status]int{}
	for _, f := range r.Features {
		counts[f.Status]++
		rows = append(rows, []string{f.Name, f.Since, string(f.Need), strings.TrimSpace(string(f.Status) + " " + f.Errno), remark(f)})
	}
	writeColumns(&b, rows)
	fmt.Fprintf(&b, "\n%d features: %d work, %d missing, %d denied, %d unavailable\n", len(r.Features),
		counts[kcheck.Works], counts[kcheck.Missing], counts[kcheck.Denied], counts[kcheck.Unavailable])
	if r.Conformance != nil {
		b.WriteString(conformanceText(r.Conformance))
	}
	return b.String()
}

// remark is what there is to say about a row: what is lost, or its note.
func remark(f kcheck.Row) string {
	switch {
	case f.Status == kcheck.Works:
		return f.Note
	case f.Note == "":
		return f.Loses
	}
	return f.Loses + "; " + f.Note
}

// writeColumns writes a table whose columns are as wide as they must be.
func writeColumns(b *strings.Builder, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&line, "%-*s  ", widths[i], cell)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// lookInside is this program as a container's process.
func lookInside(w io.Writer, name string) error {
	if name == "tick" {
		kcheck.Tick()
		return nil
	}
	sights, err := kcheck.Inside(strings.Split(name, ",")...)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(sights)
}
