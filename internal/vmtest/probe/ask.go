package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// runAsk has one conversation with a socket, like nc.
func runAsk(c *invocation) int {
	network, address := "unix", c.parse(1, 1)[0]
	if host, ok := strings.CutPrefix(address, "tcp://"); ok {
		network, address = "tcp", host
	}
	conn, err := net.Dial(network, address)
	if err == nil {
		if _, err = io.Copy(conn, os.Stdin); err == nil {
			err = conn.(interface{ CloseWrite() error }).CloseWrite()
		}
		if err == nil {
			_, err = io.Copy(os.Stdout, conn)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		return 1
	}
	return 0
}
