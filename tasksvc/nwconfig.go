package tasksvc

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

const (
	// nwConfigFile in a bundle says how nerdbox's hosts want a container connected.
	nwConfigFile   = "nw-config.json"
	maxNWConfig    = 1 << 20
	maxConnections = 32
)

// nwConfig is its content.
type nwConfig struct {
	Networks []struct {
		VmMAC      string //nolint:revive // as the file has it
		MAC        string
		Addrs      []netip.Prefix
		IfName     string
		DefaultGw4 netip.Addr
		DefaultGw6 netip.Addr
	}
}

// loadNWConfig reads what connections a bundle asks for; a bundle need not.
func loadNWConfig(bundle string) ([]nsexec.Connection, error) {
	name := filepath.Join(bundle, nwConfigFile)
	data, err := readRegular(name, maxNWConfig)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := parseNWConfig(data)
	if err != nil {
		return nil, sys.Invalidf("%s: %w", name, err)
	}
	return list, nil
}

func parseNWConfig(data []byte) (list []nsexec.Connection, err error) {
	var config nwConfig
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, err
	}
	if len(config.Networks) > maxConnections {
		return nil, fmt.Errorf("%d networks; at most %d are allowed", len(config.Networks), maxConnections)
	}
	for i, n := range config.Networks {
		c := nsexec.Connection{Name: n.IfName}
		if c.Uplink, err = parseMAC(n.VmMAC); err != nil {
			return nil, fmt.Errorf("network %d: VmMAC: %w", i, err)
		}
		if n.MAC == "" {
			c.MAC = randomMAC()
		} else if c.MAC, err = parseMAC(n.MAC); err != nil {
			return nil, fmt.Errorf("network %d: MAC: %w", i, err)
		}
		if c.Name == "" {
			c.Name = "eth%d"
		}
		if err := nsexec.CheckDeviceName(c.Name); err != nil {
			return nil, fmt.Errorf("network %d: IfName: %w", i, err)
		}
		for _, a := range n.Addrs {
			if !a.IsValid() {
				return nil, fmt.Errorf("network %d: an address is malformed", i)
			}
			c.Addrs = append(c.Addrs, netip.PrefixFrom(a.Addr().Unmap(), a.Bits()))
		}
		for _, gw := range []netip.Addr{n.DefaultGw4, n.DefaultGw6} {
			if gw.IsValid() {
				c.Gateways = append(c.Gateways, gw.Unmap())
			}
		}
		list = append(list, c)
	}
	return list, nil
}

func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err == nil && len(mac) != 6 {
		err = errors.New("an Ethernet address has 6 bytes")
	}
	return mac, err
}

// randomMAC returns a unicast address of the locally administered ones.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	sys.Random(mac)
	mac[0] = mac[0]&^1 | 2
	return mac
}

// checkConnections refuses those of a container that has the guest's network.
func checkConnections(list []nsexec.Connection, own uint64) error {
	if len(list) > 0 && own&unix.CLONE_NEWNET == 0 {
		return sys.Invalidf("%s needs a network namespace that is not the guest's", nwConfigFile)
	}
	return nil
}

// connectNetworks makes the connections through the route socket that the child
// has in the register.
func connectNetworks(list []nsexec.Connection, socket *nsexec.Reg) gateHandler {
	return func(child *nsexec.Child, regs *nsexec.Registers) error {
		fd, err := child.GetFd(regs.Fd(*socket))
		if err != nil {
			return err
		}
		d, err := nsexec.OpenNetDevices(fd)
		if err != nil {
			return err
		}
		defer d.Close()
		for _, c := range list {
			if err := d.Connect(c); err != nil {
				return err
			}
		}
		return nil
	}
}
