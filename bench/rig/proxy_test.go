package rig_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/athena-pipelines/athena/bench/rig"
)

// TestProxyFailsAsANetworkDoes shows what the two sides see of each fault.
func TestProxyFailsAsANetworkDoes(t *testing.T) {
	t.Parallel()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	p, err := rig.NewProxy(echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", "127.0.0.1:"+p.Port())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	heard := func(c net.Conn, within time.Duration) error {
		c.SetReadDeadline(time.Now().Add(within))
		_, err := c.Read(make([]byte, 1))
		return err
	}
	c := dial()
	c.Write([]byte("a"))
	if err := heard(c, time.Minute); err != nil {
		t.Errorf("a proxy without a fault: %v", err)
	}

	p.Freeze(true)
	c.Write([]byte("b"))
	if err, ok := heard(c, 200*time.Millisecond).(net.Error); !ok || !err.Timeout() {
		t.Errorf("a frozen proxy gives %v, want silence", err)
	}
	p.Freeze(false)
	if err := heard(c, time.Minute); err != nil {
		t.Errorf("a thawed proxy: %v", err)
	}

	p.Cut()
	if err := heard(c, time.Minute); err == nil {
		t.Error("a cut connection goes on")
	}
	c = dial()
	c.Write([]byte("c"))
	if err := heard(c, time.Minute); err != nil {
		t.Errorf("a new connection after a cut: %v", err)
	}

	p.Refuse(true)
	if err := heard(c, time.Minute); err == nil {
		t.Error("an old connection goes on while they are refused")
	}
	if err := heard(dial(), time.Minute); err == nil {
		t.Error("a new connection is let in while they are refused")
	}
}
