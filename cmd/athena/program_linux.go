package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// unmapStart gives back the pages of the program itself that only its start needed.
// What is used again is mapped again from the file: pages that nobody can write to
// hold nothing else. What cannot be given back stays.
func unmapStart() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var access string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &access); n != 3 || !strings.HasSuffix(strings.TrimSpace(line), " "+self) {
			continue
		}
		if access == "r-xp" || access == "r--p" {
			_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_DONTNEED)
		}
	}
}
