package boot

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Credentials are named values that a VMM hands to its guest by systemd's
// convention (systemd.exec(1), systemd-creds(1)): SMBIOS strings of type 11,
// files of QEMU's fw_cfg, or kernel parameters. Later sources win in that order.
type Credentials map[string]string

const (
	smbiosEntries = "/sys/firmware/dmi/entries"
	fwCfgDir      = "/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials"

	maxCredential  = 64 << 10 // bytes of one source
	maxCredentials = 256
)

// ReadCredentials reads all sources. One that is not there is no error: there
// are few machines that have all.
func ReadCredentials(cmdline []Param) (Credentials, error) {
	c := Credentials{}
	err := errors.Join(c.fromSMBIOS(smbiosEntries), c.fromFwCfg(fwCfgDir))
	c.fromCmdline(cmdline)
	return c, err
}

// add sets one credential; what is malformed is left out: a guest boots anyway.
func (c Credentials) add(name, value string, binary bool) {
	if binary {
		b, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return
		}
		value = string(b)
	}
	if name != "" && len(name) <= 255 && !strings.ContainsAny(name, "/\x00\n") && len(c) < maxCredentials {
		c[name] = value
	}
}

// fromSMBIOS reads the structures of type 11 (OEM strings).
// Documentation/ABI/testing/sysfs-firmware-dmi-entries, Linux 2.6.39.
func (c Credentials) fromSMBIOS(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // no SMBIOS, or a kernel without CONFIG_DMI_SYSFS
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "11-") {
			continue
		}
		b, err := readBounded(filepath.Join(dir, e.Name(), "raw"))
		errs = append(errs, err)
		for _, s := range smbiosStrings(b) {
			c.addOEM(s)
		}
	}
	return errors.Join(errs...)
}

// addOEM reads an OEM string: io.systemd.credential[.binary]:NAME=VALUE.
func (c Credentials) addOEM(s string) {
	rest, plain := strings.CutPrefix(s, "io.systemd.credential:")
	if !plain {
		var binary bool
		if rest, binary = strings.CutPrefix(s, "io.systemd.credential.binary:"); !binary {
			return
		}
	}
	if name, value, ok := strings.Cut(rest, "="); ok {
		c.add(name, value, !plain)
	}
}

// smbiosStrings returns the strings of one structure: behind its formatted area,
// whose length is its second byte, each with a NUL, an empty one at the end. DMTF
// DSP0134 section 6.1.3.
func smbiosStrings(b []byte) []string {
	if len(b) < 4 || int(b[1]) > len(b) || b[1] < 4 {
		return nil
	}
	var all []string
	for s := range strings.SplitSeq(string(b[b[1]:]), "\x00") {
		if s == "" {
			break
		}
		all = append(all, s)
	}
	return all
}

// fromFwCfg reads opt/io.systemd.credentials/NAME. Needs the module qemu_fw_cfg.
func (c Credentials) fromFwCfg(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var errs []error
	for _, e := range entries {
		b, err := readBounded(filepath.Join(dir, e.Name(), "raw"))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.add(e.Name(), string(b), false)
	}
	return errors.Join(errs...)
}

// fromCmdline reads systemd.set_credential=NAME:VALUE and its binary sister.
func (c Credentials) fromCmdline(cmdline []Param) {
	for _, p := range cmdline {
		plain := p.Key == "systemd.set_credential"
		if !plain && p.Key != "systemd.set_credential_binary" {
			continue
		}
		if name, value, ok := strings.Cut(p.Value, ":"); ok {
			c.add(name, value, !plain)
		}
	}
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxCredential))
}

const (
	machineIDFile = "/etc/machine-id"
	productUUID   = "/sys/class/dmi/id/product_uuid"
)

// WriteMachineID gives the guest its id, machine-id(5): the first valid one of
// the kernel parameter systemd.machine_id=, the credential system.machine_id, the
// file that is there, and the UUID that the VMM gave the machine.
func WriteMachineID(cmdline []Param, c Credentials) error {
	current, _ := readString(machineIDFile)
	uuid, _ := readString(productUUID)
	asked := ""
	if all := Values(cmdline, "systemd.machine_id"); len(all) > 0 {
		asked = all[len(all)-1]
	}
	id := chooseMachineID(asked, c["system.machine_id"], current, uuid)
	if id == "" || id == current {
		return nil // a machine without a name is no failure
	}
	return WriteEtc(machineIDFile, id+"\n", EtcScratch)
}

func chooseMachineID(candidates ...string) string {
	for _, c := range candidates {
		id := strings.ToLower(strings.ReplaceAll(strings.TrimSpace(c), "-", ""))
		b, err := hex.DecodeString(id)
		if err == nil && len(b) == 16 && strings.Trim(id, id[:1]) != "" { // not all zeros or all ones
			return id
		}
	}
	return ""
}
