package localpg

import "syscall"

// processAttributes puts a server into a group of its own, so that a terminal's
// Ctrl-C reaches this process alone and the order of stopping is ours, and has
// the kernel stop it (fast) when this process dies.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGINT}
}
