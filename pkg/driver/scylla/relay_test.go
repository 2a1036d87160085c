package scylla_test

import (
	"net"
	"sync"
	"testing"
)

// A relay stands before a node, on another port of the same address, and can hold
// up or cut off what goes through it.
type relay struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	held  chan struct{} // closed when what is held may go on; nil if nothing is
	conns []net.Conn
	shut  bool
}

func newRelay(t testing.TB, to string) *relay {
	t.Helper()
	host, _, err := net.SplitHostPort(to)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l, to: to}
	go r.accept()
	t.Cleanup(r.cut)
	return r
}

func (r *relay) addr() string { return r.listener.Addr().String() }

func (r *relay) accept() {
	for {
		near, err := r.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", r.to)
		if err != nil {
			near.Close()
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, near, far)
		shut := r.shut
		r.mu.Unlock()
		if shut {
			near.Close()
			far.Close()
			return
		}
		go r.pump(far, near)
		go r.pump(near, far)
	}
}

func (r *relay) pump(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		r.mu.Lock()
		held := r.held
		r.mu.Unlock()
		if held != nil {
			<-held
		}
		if _, writeErr := dst.Write(buf[:n]); writeErr != nil || err != nil {
			return
		}
	}
}

// hold lets nothing through until release is called.
func (r *relay) hold() (release func()) {
	held := make(chan struct{})
	r.mu.Lock()
	r.held = held
	r.mu.Unlock()
	return sync.OnceFunc(func() {
		r.mu.Lock()
		r.held = nil
		r.mu.Unlock()
		close(held)
	})
}

// cut ends all connections and takes no more.
func (r *relay) cut() {
	r.listener.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = true
	for _, c := range r.conns {
		c.Close()
	}
}
