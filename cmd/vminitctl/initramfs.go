package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vminit/internal/initramfs"
)

func newInitramfsCommand(g *globals) *cobra.Command {
	var o guestOptions
	var output, compression, release string
	var strip bool
	var modules, late, add []string
	cmd := &cobra.Command{
		Use:   "initramfs",
		Short: "Build a guest image",
		Long: `Build a guest image: vminitd as /init, and the modules it loads for a kernel.
The same inputs give the same bytes. No privileges are needed.`,
		Example: `  vminitctl initramfs -o guest.img
  vminitctl initramfs -o guest.img --add ./tool:/bin/tool --compression gzip`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.imageFor(release)
			if err != nil {
				return fmt.Errorf("initramfs: %w", err)
			}
			c.Compression, c.StripSignatures = compression, strip
			if cmd.Flags().Changed("modules") {
				c.Modules = modules
			}
			if cmd.Flags().Changed("late-modules") {
				c.LateModules, c.RestModules = late, nil
			}
			for _, s := range add {
				f, err := initramfs.ParseFile(s)
				if err != nil {
					return fmt.Errorf("initramfs: --add: %w", err)
				}
				c.Add = append(c.Add, f)
			}
			info, err := writeInitramfs(output, c)
			if err != nil {
				return fmt.Errorf("initramfs: %w", err)
			}
			out := cmd.OutOrStdout()
			if g.json {
				return json.NewEncoder(out).Encode(info)
			}
			_, err = fmt.Fprintf(out, "%s: %d bytes (%d unpacked), %d modules, sha256 %s\n",
				output, info.Size, info.Unpacked, len(info.Modules)+len(info.LateModules)+len(info.RestModules), info.SHA256)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "initramfs.img", "file to write")
	f.StringVar(&o.vminitd, "vminitd", "", "daemon to put in (default: the one beside this program)")
	f.StringVar(&o.kernel, "kernel", "", "kernel image to take modules for (default: the newest installed)")
	f.StringVar(&release, "release", "", "kernel release to take modules for, instead of --kernel's")
	f.StringSliceVar(&modules, "modules", nil, "modules to load before serving; ? after a name: if there is one")
	f.StringSliceVar(&late, "late-modules", nil, "modules to load while serving")
	f.StringArrayVar(&add, "add", nil, "put a file or directory in, SRC:DST")
	f.BoolVar(&strip, "strip-signatures", false, "leave out the modules' signatures, which take long to check; kernels that enforce them refuse to load such modules")
	f.StringVar(&compression, "compression", initramfs.Zstd, "zstd, gzip or none")
	return cmd
}

// imageFor is the image's config for a release, or for the kernel that is
// named, or for the one that would be booted. An image may be of a kernel that has
// no modules, a release is nothing but where they are.
func (o guestOptions) imageFor(release string) (c initramfs.Config, err error) {
	switch {
	case release != "":
		err = initramfs.CheckRelease(release)
	case o.kernel != "":
		release, err = initramfs.KernelRelease(o.kernel)
	default:
		_, release, err = initramfs.FindKernel()
	}
	if err != nil {
		return c, err
	}
	return o.initramfsConfig(release)
}

// writeInitramfs replaces a file by an image, once that is complete.
func writeInitramfs(path string, c initramfs.Config) (info initramfs.Info, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return info, err
	}
	info, err = initramfs.Build(f, c)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return info, err
}
