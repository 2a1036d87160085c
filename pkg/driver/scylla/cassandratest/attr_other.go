//go:build !linux

package cassandratest

import "syscall"

// processAttributes leaves a node in the tests' group: without Linux's signal on a
// parent's death, what ends the group should end the node too.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
