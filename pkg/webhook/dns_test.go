package webhook

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
)

// resolver starts a name server on the loopback and returns a resolver that
// asks it alone. answer is given a name and returns its IPv4 addresses; with
// none the name does not exist.
func resolver(t *testing.T, answer func(name string) []netip.Addr) *net.Resolver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { pc.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(reply(buf[:n], answer), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

// reply answers a query of one question.
func reply(q []byte, answer func(string) []netip.Addr) []byte {
	const header = 12
	name, i := "", header
	for q[i] != 0 {
		name += string(q[i+1:i+1+int(q[i])]) + "."
		i += 1 + int(q[i])
	}
	kind, end := binary.BigEndian.Uint16(q[i+1:]), i+5
	addrs := answer(name)

	out := append([]byte(nil), q[:end]...)
	binary.BigEndian.PutUint16(out[2:], 0x8180)
	if len(addrs) == 0 {
		binary.BigEndian.PutUint16(out[2:], 0x8183) // no such name
	}
	if kind != 1 {
		addrs = nil
	}
	binary.BigEndian.PutUint16(out[6:], uint16(len(addrs)))
	binary.BigEndian.PutUint32(out[8:], 0)
	for _, a := range addrs {
		out = append(out, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		out = append(out, a.AsSlice()...)
	}
	return out
}
