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

var armed = sync.OnceValues(func() (string, *atomic.Int64) {
	name, count, _ := strings.Cut(os.Getenv("ATHENA_CRASHPOINT"), ":")
	n, _ := strconv.ParseInt(count, 10, 64)
	var left atomic.Int64
	left.Store(max(n, 1))
	return name, &left
})

// Here kills the process if this point was asked for and its time has come.
func Here(point string) {
	if name, left := armed(); name == point && left.Add(-1) == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
