package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/sys"
)

// updateOptions are the flags of update. What was not given is not changed.
type updateOptions struct {
	file string

	memory, reservation, swap string

	quota, burst, idle, pids       int64
	period, shares                 uint64
	weight                         uint16
	cpus, mems                     string
	checkBeforeUpdate              bool
	kernel, kernelTCP              string
	rtPeriod, rtRuntime, l3, memBW string
}

func newUpdateCommand(g *globals) *cobra.Command {
	o := new(updateOptions)
	cmd := &cobra.Command{
		Use:   "update [flags] ID",
		Short: "Change the limits of a container",
		Long: `Change the limits of a container. They come from a JSON file as linux.resources in
config.json ("-" is stdin), and from flags, which win. What is not given stays.`,
		Example: `  vminitctl update --memory 64M --pids-limit 100 c1
  echo '{"cpu":{"quota":50000,"period":100000}}' | vminitctl update -r - c1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := o.resources(cmd.Flags())
			if err != nil {
				return verbError(cmd, args[0], err)
			}
			body, err := json.Marshal(r)
			if err != nil {
				return err
			}
			return g.call(cmd, args[0], func(ctx context.Context, guest *guest) error {
				_, err := guest.task.Update(ctx, &taskv3.UpdateTaskRequest{
					ID: args[0], Resources: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: body},
				})
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "resources", "r", "", "file with the resources as JSON, - for stdin")
	f.StringVar(&o.memory, "memory", "", "memory limit in bytes, or as 64M; -1 for none")
	f.StringVar(&o.reservation, "memory-reservation", "", "memory that is kept as long as possible")
	f.StringVar(&o.swap, "memory-swap", "", "limit of memory and swap together; -1 for none")
	f.BoolVar(&o.checkBeforeUpdate, "check-before-update", false, "refuse a memory limit below what is in use")
	f.Int64Var(&o.quota, "cpu-quota", 0, "CPU time in microseconds per period; -1 for no limit")
	f.Uint64Var(&o.period, "cpu-period", 0, "the period in microseconds")
	f.Int64Var(&o.burst, "cpu-burst", 0, "CPU time in microseconds that may be saved up")
	f.Uint64Var(&o.shares, "cpu-share", 0, "relative share of the CPU, as in cgroup version 1")
	f.Int64Var(&o.idle, "cpu-idle", 0, "1: run only when nobody else wants to")
	f.StringVar(&o.cpus, "cpuset-cpus", "", "CPUs to run on, such as 0-2,7")
	f.StringVar(&o.mems, "cpuset-mems", "", "memory nodes to use")
	f.Int64Var(&o.pids, "pids-limit", 0, "number of processes; -1 for no limit")
	f.Uint16Var(&o.weight, "blkio-weight", 0, "relative share of disk I/O, 10 to 1000")
	f.StringVar(&o.l3, "l3-cache-schema", "", "not supported here: set linux.intelRdt in config.json")
	f.StringVar(&o.memBW, "mem-bw-schema", "", "likewise")
	f.StringVar(&o.kernel, "kernel-memory", "", "accepted, without effect")
	f.StringVar(&o.kernelTCP, "kernel-memory-tcp", "", "accepted, without effect")
	f.StringVar(&o.rtPeriod, "cpu-rt-period", "", "not in cgroup version 2")
	f.StringVar(&o.rtRuntime, "cpu-rt-runtime", "", "not in cgroup version 2")
	for _, name := range []string{"l3-cache-schema", "mem-bw-schema", "kernel-memory", "kernel-memory-tcp", "cpu-rt-period", "cpu-rt-runtime"} {
		_ = f.MarkHidden(name)
	}
	return cmd
}

// resources are what is to be changed.
func (o *updateOptions) resources(f *pflag.FlagSet) (*specs.LinuxResources, error) {
	r := new(specs.LinuxResources)
	if o.file != "" {
		data, err := readInput(o.file)
		if err != nil {
			return nil, fmt.Errorf("--resources: %w", err)
		}
		if err := json.Unmarshal(data, r); err != nil {
			return nil, fmt.Errorf("--resources %s: %w", o.file, sys.Mark(sys.ErrInvalid, err))
		}
	}
	for _, name := range []string{"l3-cache-schema", "mem-bw-schema", "cpu-rt-period", "cpu-rt-runtime"} {
		if f.Changed(name) {
			return nil, sys.Unsupportedf("--%s: %s", name, f.Lookup(name).Usage)
		}
	}
	if err := o.memoryLimits(f, r); err != nil {
		return nil, err
	}
	o.cpuLimits(f, r)
	if f.Changed("pids-limit") {
		r.Pids = &specs.LinuxPids{Limit: &o.pids}
	}
	if f.Changed("blkio-weight") {
		if r.BlockIO == nil {
			r.BlockIO = new(specs.LinuxBlockIO)
		}
		r.BlockIO.Weight = &o.weight
	}
	return r, nil
}

func (o *updateOptions) memoryLimits(f *pflag.FlagSet, r *specs.LinuxResources) error {
	memory := func() *specs.LinuxMemory {
		if r.Memory == nil {
			r.Memory = new(specs.LinuxMemory)
		}
		return r.Memory
	}
	for _, x := range []struct {
		name, text string
		field      func() **int64
	}{
		{"memory", o.memory, func() **int64 { return &memory().Limit }},
		{"memory-reservation", o.reservation, func() **int64 { return &memory().Reservation }},
		{"memory-swap", o.swap, func() **int64 { return &memory().Swap }},
	} {
		if !f.Changed(x.name) {
			continue
		}
		n, err := parseBytes(x.text)
		if err != nil {
			return fmt.Errorf("--%s: %w", x.name, err)
		}
		*x.field() = &n
	}
	if f.Changed("check-before-update") {
		memory().CheckBeforeUpdate = &o.checkBeforeUpdate
	}
	return nil
}

func (o *updateOptions) cpuLimits(f *pflag.FlagSet, r *specs.LinuxResources) {
	cpu := func() *specs.LinuxCPU {
		if r.CPU == nil {
			r.CPU = new(specs.LinuxCPU)
		}
		return r.CPU
	}
	for name, set := range map[string]func(){
		"cpu-quota":   func() { cpu().Quota = &o.quota },
		"cpu-period":  func() { cpu().Period = &o.period },
		"cpu-share":   func() { cpu().Shares = &o.shares },
		"cpu-idle":    func() { cpu().Idle = &o.idle },
		"cpuset-cpus": func() { cpu().Cpus = o.cpus },
		"cpuset-mems": func() { cpu().Mems = o.mems },
		"cpu-burst": func() {
			burst := uint64(max(0, o.burst))
			cpu().Burst = &burst
		},
	} {
		if f.Changed(name) {
			set()
		}
	}
}

// parseBytes reads a number of bytes with an optional unit, powers of 1024; -1
// stands for no limit.
func parseBytes(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	digits := strings.TrimRight(strings.ToLower(s), "kmgtib")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, sys.Invalidf("%q is no number of bytes such as 64M", s)
	}
	shift, ok := map[string]int{
		"": 0, "b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20, "g": 30, "gb": 30, "gib": 30, "t": 40, "tb": 40, "tib": 40,
	}[strings.ToLower(s)[len(digits):]]
	if !ok || n > math.MaxInt64>>shift {
		return 0, sys.Invalidf("%q is no number of bytes such as 64M", s)
	}
	return n << shift, nil
}
