package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

// runAsk has one conversation with a unix socket, like "nc -U".
func runAsk(c *invocation) int {
	path := c.parse(1, 1)[0]
	conn, err := net.Dial("unix", path)
	if err == nil {
		if _, err = io.Copy(conn, os.Stdin); err == nil {
			err = conn.(*net.UnixConn).CloseWrite()
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
