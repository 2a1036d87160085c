package cassandratest

import "syscall"

// processAttributes puts a node into a group of its own, so that a terminal's
// Ctrl-C reaches the tests alone, and has the kernel kill it when they die.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
