//go:build linux || darwin

package main

import "syscall"

// diskSpace is what an ordinary user may still use, and all there is.
func diskSpace(dir string) (free, total uint64, known bool) {
	var fs syscall.Statfs_t
	if syscall.Statfs(dir, &fs) != nil {
		return 0, 0, false
	}
	return fs.Bavail * uint64(fs.Bsize), fs.Blocks * uint64(fs.Bsize), true
}

func openFilesLimit() (n uint64, known bool) {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0, false
	}
	return limit.Cur, true
}
