package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"vminit/internal/sys"
)

func newSpecCommand() *cobra.Command {
	var bundle string
	var rootless bool
	cmd := &cobra.Command{
		Use:   "spec [--bundle DIR] [--rootless]",
		Short: "Write a config.json to start from",
		Long: `Write a config.json that runs a shell on a terminal in the bundle's rootfs/. With
--rootless the container has a user namespace in which its root is the user who
runs this.`,
		Example: `  mkdir -p bundle/rootfs; vminitctl spec --bundle bundle`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := exampleSpec()
			if rootless {
				makeRootless(s, uint32(os.Geteuid()), uint32(os.Getegid()))
			}
			if err := writeSpec(filepath.Join(bundle, "config.json"), s); err != nil {
				return fmt.Errorf("spec: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&bundle, "bundle", "b", ".", "the bundle's directory")
	cmd.Flags().BoolVar(&rootless, "rootless", false, "for a container whose root is this user")
	return cmd
}

func writeSpec(name string, s *specs.Spec) error {
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return sys.Mark(sys.ErrExists, fmt.Errorf("%s exists: remove it first", name))
	}
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	return errors.Join(err, f.Close())
}

// exampleSpec is a config to be edited.
func exampleSpec() *specs.Spec {
	s := defaultSpec("", "")
	s.Hostname = "vminit"
	s.Root.Readonly = true
	s.Process.Args = []string{"sh"}
	s.Process.Terminal = true
	s.Process.Env = append(s.Process.Env, "TERM=xterm")
	s.Linux.CgroupsPath = "" // named after the container
	return s
}

// makeRootless takes out what an ordinary user could not have: ids other than
// root's, a network namespace with its sysfs, and limits.
func makeRootless(s *specs.Spec, uid, gid uint32) {
	l := s.Linux
	l.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: uid, Size: 1}}
	l.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: gid, Size: 1}}
	l.Namespaces = slices.DeleteFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	l.Resources = nil
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if m.Type == "sysfs" {
			*m = specs.Mount{Destination: m.Destination, Type: "none", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
			continue
		}
		m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "uid=") || strings.HasPrefix(o, "gid=") })
	}
}
