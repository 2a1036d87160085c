//go:build unix

package localpg

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// An owner is the user that a server runs as when this process is root. A nil
// owner stands for this process's own user.
type owner struct {
	name   string
	uid    int
	gids   []int // the first is the primary group
	groups []uint32
}

func serverOwner() (*owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		o := &owner{name: name}
		o.uid, _ = strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		o.gids = []int{gid}
		ids, _ := u.GroupIds()
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil {
				o.gids = append(o.gids, n)
				o.groups = append(o.groups, uint32(n))
			}
		}
		return o, nil
	}
	return nil, fmt.Errorf("localpg: PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody to run it as; run this program as an ordinary user")
}

// take gives dir to the owner and makes sure that it can be reached.
func (o *owner) take(dir string) error {
	if o == nil {
		return nil
	}
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return fmt.Errorf("localpg: %w", err)
		}
		if !o.mayEnter(info) {
			return fmt.Errorf("localpg: this process is root, so the server runs as user %s, who may not enter %s; "+
				"choose a directory elsewhere, open it with `chmod o+x %s`, or run this program as an ordinary user", o.name, parent, parent)
		}
		if parent == filepath.Dir(parent) {
			return o.chown(dir)
		}
	}
}

func (o *owner) mayEnter(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return true
	case int(st.Uid) == o.uid:
		return info.Mode()&0o100 != 0
	case slices.Contains(o.gids, int(st.Gid)):
		return info.Mode()&0o010 != 0
	}
	return info.Mode()&0o001 != 0
}

func (o *owner) chown(path string) error {
	if o == nil {
		return nil
	}
	if err := os.Chown(path, o.uid, o.gids[0]); err != nil {
		return fmt.Errorf("localpg: %w", err)
	}
	return nil
}

func (o *owner) attributes() *syscall.SysProcAttr {
	attr := processAttributes()
	if o != nil {
		attr.Credential = &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gids[0]), Groups: o.groups}
	}
	return attr
}

// signal asks the postmaster to stop.
func (c *child) signal(mode StopMode) error {
	if mode == Immediate {
		return c.cmd.Process.Signal(syscall.SIGQUIT)
	}
	return c.cmd.Process.Signal(syscall.SIGINT)
}
