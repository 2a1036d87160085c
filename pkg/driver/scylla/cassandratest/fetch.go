package cassandratest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Version is the release of Apache Cassandra that is fetched.
const Version = "5.0.6"

const (
	artifact = "org.apache.cassandra:cassandra-all"
	plugin   = "org.apache.maven.plugins:maven-dependency-plugin:3.6.0:copy-dependencies"
)

// Fetch makes sure that Start can start: that the server's jars are there, fetched
// if they were not, and a Java to run them.
func Fetch(ctx context.Context) error {
	if _, err := findJava(ctx); err != nil {
		return err
	}
	_, err := fetch(ctx)
	return err
}

// fetch returns the directory of the server's jars, after having Maven fetch them
// if they are not there. Checksums that do not fit fail it.
func fetch(ctx context.Context) (dir string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cassandratest: %w", err)
	}
	dir = filepath.Join(cache, "athena", "cassandra-"+Version)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return "", errors.New("cassandratest: mvn is not there to fetch Cassandra; install Maven, such as the package maven")
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("cassandratest: %w", err)
	}
	// What is half fetched must not be taken for the whole, nor two fetches mix.
	scratch, err := os.MkdirTemp(filepath.Dir(dir), ".cassandra-")
	if err != nil {
		return "", fmt.Errorf("cassandratest: %w", err)
	}
	defer os.RemoveAll(scratch)
	if err := os.WriteFile(filepath.Join(scratch, "pom.xml"), []byte(pom()), 0o644); err != nil {
		return "", fmt.Errorf("cassandratest: %w", err)
	}
	cmd := exec.CommandContext(ctx, mvn, "--batch-mode", "--quiet", "--strict-checksums", plugin,
		"-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(scratch, "jars"))
	cmd.Dir = scratch
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cassandratest: Maven could not fetch %s %s: %w: %s", artifact, Version, err, firstLine(out))
	}
	if err := os.Rename(filepath.Join(scratch, "jars"), dir); err != nil {
		if _, e := os.Stat(dir); e == nil {
			return dir, nil // another process was first
		}
		return "", fmt.Errorf("cassandratest: %w", err)
	}
	return dir, nil
}

func pom() string {
	group, name, _ := strings.Cut(artifact, ":")
	return `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>athena</groupId>
  <artifactId>cassandra</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>` + group + `</groupId>
      <artifactId>` + name + `</artifactId>
      <version>` + Version + `</version>
    </dependency>
  </dependencies>
</project>
`
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// findJava returns a Java 17, which this release of Cassandra runs on: that of
// JAVA_HOME, of PATH, or of the places where packages put it.
func findJava(ctx context.Context) (string, error) {
	var candidates []string
	if home := os.Getenv("JAVA_HOME"); home != "" {
		candidates = append(candidates, filepath.Join(home, "bin", "java"))
	}
	if path, err := exec.LookPath("java"); err == nil {
		candidates = append(candidates, path)
	}
	for _, pattern := range []string{"/usr/lib/jvm/*17*/bin/java", "/opt/homebrew/opt/openjdk@17/bin/java"} {
		found, _ := filepath.Glob(pattern)
		candidates = append(candidates, found...)
	}
	for _, java := range candidates {
		out, err := exec.CommandContext(ctx, java, "-version").CombinedOutput()
		if err == nil && strings.Contains(string(out), `version "17`) {
			return java, nil
		}
	}
	return "", errors.New("cassandratest: no Java 17 found; set JAVA_HOME, or install one, such as the package openjdk-17-jre-headless")
}
