//go:build !linux

package main

// unmapStart is for systems that tell how a program is mapped.
func unmapStart() {}
