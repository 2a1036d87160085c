//go:build !crashpoints

package crashpoint

// Enabled reports whether this build can crash on purpose.
const Enabled = false

// Here marks a point.
func Here(string) {}
