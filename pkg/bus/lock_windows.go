package bus

import (
	"errors"
	"syscall"
)

const errSharingViolation = syscall.Errno(32)

// A dirLock is held until it is released or its process ends, however it ends.
type dirLock struct{ h syscall.Handle }

func acquire(path string) (*dirLock, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	// Share mode 0: nobody else can open the file while it is open here.
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errSharingViolation) {
		return nil, errLocked
	}
	if err != nil {
		return nil, err
	}
	return &dirLock{h}, nil
}

func (l *dirLock) release() { syscall.CloseHandle(l.h) }
