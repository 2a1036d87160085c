package localpg

import (
	"os/exec"
	"path/filepath"
	"syscall"
)

// An owner has no meaning on Windows, where PostgreSQL drops rights by itself.
type owner struct{}

func serverOwner() (*owner, error)              { return nil, nil }
func (*owner) take(string) error                { return nil }
func (*owner) chown(string) error               { return nil }
func (*owner) attributes() *syscall.SysProcAttr { return nil }

// signal asks the postmaster to stop; Windows has no signals, pg_ctl has its own.
func (c *child) signal(mode StopMode) error {
	return exec.Command(filepath.Join(filepath.Dir(c.cmd.Path), "pg_ctl.exe"), "stop", "-D", c.data, "-m", string(mode), "-W").Run()
}
