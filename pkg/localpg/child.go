package localpg

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A child is a running postmaster.
type child struct {
	cmd  *exec.Cmd
	data string
	tail tail
	done chan struct{} // closed when it has ended
}

// spawn starts the program. Linux ties the signal that a child gets on its
// parent's death to the thread that started it, so one thread is kept for as
// long as the child lives.
func (c *child) spawn() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.cmd.Wait() // how it ended is in its log
			close(c.done)
		}
	}()
	return <-started
}

// pidFile is what postmaster.pid tells.
type pidFile struct {
	number int // 0: there is no such file
	port   int
	ready  bool
}

// readPidFile reads a data directory's postmaster.pid: the process on line 1,
// the port on line 4, the state on line 8.
func readPidFile(data string) (p pidFile) {
	raw, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return p
	}
	lines := strings.Split(string(raw), "\n")
	p.number, _ = strconv.Atoi(strings.TrimSpace(lines[0]))
	if len(lines) > 3 {
		p.port, _ = strconv.Atoi(strings.TrimSpace(lines[3]))
	}
	p.ready = len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready"
	return p
}

// runsOver reports whether p is a live server over data, and not some other
// process that was given an old number.
func runsOver(p pidFile, data string) bool {
	if runtime.GOOS == "linux" {
		// The postmaster's working directory is its data directory.
		cwd, err := os.Readlink("/proc/" + strconv.Itoa(p.number) + "/cwd")
		real, e := filepath.EvalSymlinks(data)
		return err == nil && e == nil && cwd == real
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)), time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// tail passes a log on and keeps its end for error messages.
type tail struct {
	mu   sync.Mutex
	next io.Writer
	buf  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - 4096; over > 0 {
		t.buf = t.buf[:copy(t.buf, t.buf[over:])]
	}
	if t.next != nil {
		t.next.Write(b) // a log that fails must not stop the server
	}
	return len(b), nil
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return lastLines(t.buf)
}

// lastLines cuts a program's output to what fits an error message.
func lastLines(out []byte) string {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return string(bytes.Join(lines, []byte("\n")))
}
