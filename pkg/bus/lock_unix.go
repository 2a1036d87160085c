//go:build unix

package bus

import (
	"errors"
	"os"
	"syscall"
)

// A dirLock is held until it is released or its process ends, however it ends.
type dirLock struct{ f *os.File }

func acquire(path string) (*dirLock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, err
	}
	return &dirLock{f}, nil
}

func (l *dirLock) release() { l.f.Close() }
