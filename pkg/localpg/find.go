package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"time"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// ErrNotFound is in the chain of the error for a machine without PostgreSQL.
var ErrNotFound = errors.New("localpg: no PostgreSQL server found on this machine")

// Find returns the directory that holds PostgreSQL's server programs: the one
// that ATHENA_PG_BIN names, that of PATH, or the newest in the places where
// packages put them.
func Find() (binDir string, err error) {
	if dir := os.Getenv("ATHENA_PG_BIN"); dir != "" {
		if !complete(dir) {
			return "", fmt.Errorf("localpg: ATHENA_PG_BIN is %q, which does not hold initdb, pg_ctl and postgres", dir)
		}
		return dir, nil
	}
	if path, err := exec.LookPath("pg_ctl"); err == nil {
		// What is in PATH may be a link; its neighbours are beside the program.
		if real, err := filepath.EvalSymlinks(path); err == nil && complete(filepath.Dir(real)) {
			return filepath.Dir(real), nil
		}
		if complete(filepath.Dir(path)) {
			return filepath.Dir(path), nil
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
		"/usr/pgsql-*/bin",          // the project's packages for Red Hat
		"/usr/local/pgsql/bin",      // built from source
		"/usr/libexec/postgresql*",  // Alpine
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
		"/opt/homebrew/opt/postgresql/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		"/usr/bin",
	} {
		dirs, _ := filepath.Glob(pattern)
		slices.SortFunc(dirs, func(a, b string) int { return majorOf(b) - majorOf(a) })
		for _, dir := range dirs {
			if complete(dir) {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("%w; do one of these: install your system's package (such as postgresql), "+
		"put initdb and pg_ctl on PATH or set ATHENA_PG_BIN to their directory, or allow the download of a private copy", ErrNotFound)
}

func complete(dir string) bool {
	for _, name := range []string{"initdb", "pg_ctl", "postgres"} {
		if runtime.GOOS == "windows" {
			name += ".exe"
		}
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

var number = regexp.MustCompile(`\d+`)

// majorOf is the version in a path such as /usr/lib/postgresql/15/bin; 0 if
// there is none.
func majorOf(dir string) int {
	n, _ := strconv.Atoi(number.FindString(dir))
	return n
}

// download fetches PostgreSQL's programs into a cache and returns their
// directory. The library offers no fetch of its own: it fetches on the way to
// starting a server, so a throwaway one is started and stopped. Whether it
// comes up is of no interest (as root it cannot); that the programs are there is.
func download(ctx context.Context, progress func(string)) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(cache, "postgres-"+string(embedded.V18), "bin")
	if complete(bin) {
		return bin, nil
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	scratch, err := os.MkdirTemp("", "athena-postgres-download-")
	if err != nil {
		return "", fmt.Errorf("localpg: %w", err)
	}
	pg := embedded.NewDatabase(embedded.DefaultConfig().
		Version(embedded.V18).
		CachePath(cache).
		BinariesPath(filepath.Dir(bin)).
		RuntimePath(filepath.Join(scratch, "run")).
		DataPath(filepath.Join(scratch, "data")).
		Port(uint32(port)).
		Logger(io.Discard))

	done := make(chan error, 1)
	go func() {
		err := pg.Start()
		if err == nil {
			err = pg.Stop()
		}
		os.RemoveAll(scratch)
		done <- err
	}()
	begin := time.Now()
	progress("downloading PostgreSQL " + string(embedded.V18) + " (some 10 to 30 MB, once)")
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("localpg: download of PostgreSQL: %w", ctx.Err())
		case <-tick.C:
			progress(fmt.Sprintf("downloading PostgreSQL %s, %d s", embedded.V18, int(time.Since(begin).Seconds())))
		case err := <-done:
			if complete(bin) {
				return bin, nil
			}
			return "", fmt.Errorf("localpg: download of PostgreSQL failed (%w); instead install your system's package, "+
				"or set ATHENA_PG_BIN to the directory of initdb and pg_ctl", err)
		}
	}
}

// cacheDir is where downloaded programs are kept. Root's own cache is closed to
// the user that the server runs as.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/athena", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("localpg: %w", err)
	}
	return filepath.Join(dir, "athena"), nil
}
