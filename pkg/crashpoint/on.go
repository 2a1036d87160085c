//go:build crashpoints

package crashpoint

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Enabled reports whether this build can crash on purpose.
const Enabled = true

// charge is what the process is armed with.
type charge struct {
	point  string
	left   atomic.Int64 // times until it goes off
	freeze bool
}

var armed = sync.OnceValue(func() *charge {
	name, rest, _ := strings.Cut(os.Getenv("ATHENA_CRASHPOINT"), ":")
	count, how, _ := strings.Cut(rest, ":")
	n, _ := strconv.ParseInt(count, 10, 64)
	c := &charge{point: name, freeze: how == "freeze"}
	c.left.Store(max(n, 1))
	return c
})

// Here kills the process, or stops it, if this point was asked for and its time has
// come.
func Here(point string) {
	c := armed()
	switch {
	case c.point != point || c.left.Add(-1) != 0:
	case c.freeze:
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	default:
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
