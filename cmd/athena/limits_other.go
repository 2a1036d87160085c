//go:build !linux && !darwin

package main

// Elsewhere these are not looked at.

func diskSpace(string) (free, total uint64, known bool) { return 0, 0, false }

func openFilesLimit() (n uint64, known bool) { return 0, false }
