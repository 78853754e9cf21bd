package netup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dhcpSocket carries messages of one interface. Reads end with ctx or a
// deadline.
type dhcpSocket struct {
	file *os.File
	// raw sockets (packet(7), SOCK_DGRAM) carry IP and UDP headers, which an
	// interface without an address has no other way to send or receive.
	raw   bool
	index int
}

func htons(v uint16) uint16 { return v<<8 | v>>8 } // both architectures are little-endian

// openRaw opens a socket for an interface that has no address yet. The filter
// lets only UDP to the client's port through, so that the guest's other traffic
// does not wake the daemon.
func openRaw(index int) (*dhcpSocket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket (needs CONFIG_PACKET): %w", err)
	}
	err = attachFilter(fd)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: index})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket for DHCP: %w", err)
	}
	return &dhcpSocket{file: os.NewFile(uintptr(fd), "dhcp"), raw: true, index: index}, nil
}

// attachFilter lets IPv4 packets through that are no later fragments and are UDP
// to port 68. socket(7), SO_ATTACH_FILTER.
func attachFilter(fd int) error {
	const ld, ldh, ldxb, jmp, jset, ret = 0x30, 0x28, 0xb1, 0x15, 0x45, 0x06 // BPF_LD|BPF_B|BPF_ABS, ...
	filter := []unix.SockFilter{
		{Code: ld, K: 9},                        // protocol
		{Code: jmp, Jf: 6, K: unix.IPPROTO_UDP}, //
		{Code: ldh, K: 6},                       // fragment offset
		{Code: jset, Jt: 4, K: 0x1fff},          //
		{Code: ldxb, K: 0},                      // X = length of the IP header
		{Code: 0x48, K: 2},                      // BPF_LD|BPF_H|BPF_IND: destination port
		{Code: jmp, Jf: 1, K: dhcpClientPort},   //
		{Code: ret, K: 0xffff},                  //
		{Code: ret, K: 0},                       //
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// openUDP opens a socket that talks from the leased address to one server.
func openUDP(device string, from, server netip.Addr) (*dhcpSocket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.BindToDevice(fd, device)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: dhcpClientPort, Addr: from.As4()})
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: dhcpServerPort, Addr: server.As4()})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("UDP socket for DHCP: %w", err)
	}
	return &dhcpSocket{file: os.NewFile(uintptr(fd), "dhcp")}, nil
}

func (s *dhcpSocket) close() { s.file.Close() }

// send sends a message: to everybody on a raw socket.
func (s *dhcpSocket) send(message []byte) error {
	if !s.raw {
		_, err := s.file.Write(message)
		return err
	}
	conn, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{
		Protocol: htons(unix.ETH_P_IP), Ifindex: s.index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	var sent error
	err = conn.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), broadcastPacket(message), 0, to)
		return !errors.Is(sent, unix.EAGAIN)
	})
	return errors.Join(err, sent)
}

// receive returns the next message that answers what the caller sent. What is
// malformed or meant for others is dropped. It returns os.ErrDeadlineExceeded at
// the deadline.
func (s *dhcpSocket) receive(ctx context.Context, deadline time.Time, sent dhcpMessage) (dhcpMessage, error) {
	if err := s.file.SetReadDeadline(deadline); err != nil {
		return dhcpMessage{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, dhcpMax+60+8)
	for {
		if ctx.Err() != nil {
			return dhcpMessage{}, ctx.Err()
		}
		n, err := s.file.Read(buf)
		if ctx.Err() != nil {
			return dhcpMessage{}, ctx.Err()
		}
		if errors.Is(err, unix.ECONNREFUSED) { // an ICMP answer: the server is away
			continue
		}
		if err != nil {
			return dhcpMessage{}, err
		}
		b := buf[:n]
		if s.raw {
			b = payload(b)
		}
		m, err := parseDHCP(b)
		if err == nil && m.op == 2 && m.xid == sent.xid && m.mac.String() == sent.mac.String() {
			return m, nil
		}
	}
}

// broadcastPacket puts IPv4 and UDP headers before a message from nobody to
// everybody: RFC 791, RFC 768.
func broadcastPacket(message []byte) []byte {
	b := make([]byte, 28, 28+len(message))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(message)))
	for i := 16; i < 20; i++ {
		b[i] = 0xff
	}
	binary.BigEndian.PutUint16(b[10:], ^checksum(0, b[:20]))
	binary.BigEndian.PutUint16(b[20:], dhcpClientPort)
	binary.BigEndian.PutUint16(b[22:], dhcpServerPort)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(message)))
	b = append(b, message...)
	// The pseudo header: addresses, protocol, length.
	sum := checksum(unix.IPPROTO_UDP+uint32(8+len(message)), b[12:])
	if sum = ^sum; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[26:], sum)
	return b
}

// checksum adds 16-bit words in ones' complement: RFC 1071.
func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// payload returns what is behind the IPv4 and UDP headers of a packet to the
// client's port, nil for any other packet. The checksum is not looked at: on a
// virtual link it is often not filled in.
func payload(b []byte) []byte {
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_UDP {
		return nil
	}
	head := int(b[0]&15) * 4
	if head < 20 || len(b) < head+8 || binary.BigEndian.Uint16(b[head+2:]) != dhcpClientPort {
		return nil
	}
	length := int(binary.BigEndian.Uint16(b[head+4:]))
	if length < 8 || length > len(b)-head {
		return nil
	}
	return b[head+8 : head+length]
}
