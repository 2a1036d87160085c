//go:build unix && !linux

package localpg

import "syscall"

// processAttributes leaves a server in this process's group: without Linux's
// signal on a parent's death, what ends the group should end the server too.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
