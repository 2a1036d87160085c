package rig

import (
	"net"
	"sync"
	"time"
)

// A Proxy stands between Athena and its database, on the loopback interface,
// and lets the network between them fail. It is safe for concurrent use.
type Proxy struct {
	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond        // frozen or closed has
	open    map[net.Conn]bool // true: stranded
	frozen  bool              // bytes are taken in and go nowhere
	refuse  bool              // new connections are closed
	rate    int               // bytes a second in each direction of a connection; 0 is no limit
	closed  bool
}

// NewProxy starts a proxy before the address target. Close ends it.
func NewProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, listener: l, open: map[net.Conn]bool{}}
	p.changed = sync.NewCond(&p.mu)
	p.running.Go(p.accept)
	return p, nil
}

// Port is where the proxy listens on 127.0.0.1.
func (p *Proxy) Port() string {
	_, port, _ := net.SplitHostPort(p.listener.Addr().String())
	return port
}

// Cut closes all connections. New ones are let through.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

func (p *Proxy) cut() {
	for c := range p.open {
		c.Close()
	}
}

// Refuse cuts all connections and closes new ones at once, until it is told
// otherwise.
func (p *Proxy) Refuse(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse = yes; yes {
		p.cut()
	}
}

// Freeze has nothing go through, of old connections and of new ones, and leaves
// them open: neither side is told anything. Thawed, they go on where they were.
func (p *Proxy) Freeze(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = yes
	p.changed.Broadcast()
}

// Strand has nothing go through the connections that there are, for good, and
// leaves them open. New ones are let through.
func (p *Proxy) Strand() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		p.open[c] = true
	}
}

// Slow bounds the bytes that go through each direction of a connection in a
// second; 0 lifts it.
func (p *Proxy) Slow(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = bytes
}

// Close ends the proxy and its connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true // and what is stranded goes on to its end
	p.changed.Broadcast()
	p.listener.Close()
	p.cut()
	p.mu.Unlock()
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.serve(c) })
	}
}

func (p *Proxy) serve(from net.Conn) {
	if !p.enter(from) {
		return
	}
	defer p.leave(from)
	to, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil || !p.enter(to) {
		return
	}
	defer p.leave(to)
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		both.Go(func() {
			p.pipe(way[1], way[0])
			from.Close()
			to.Close()
		})
	}
	both.Wait()
}

func (p *Proxy) enter(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse || p.closed {
		c.Close()
		return false
	}
	p.open[c] = false
	return true
}

func (p *Proxy) leave(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

func (p *Proxy) pipe(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		most := len(buf)
		if rate := p.pass(from); rate > 0 {
			most = min(most, max(1, rate/20))
		}
		n, err := from.Read(buf[:most])
		if rate := p.pass(from); rate > 0 {
			time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits for as long as nothing may go through, and returns the rate.
func (p *Proxy) pass(from net.Conn) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for (p.frozen || p.open[from]) && !p.closed {
		p.changed.Wait()
	}
	return p.rate
}
