package locals3

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3api/middlewares"
)

const (
	maxConnections = 4096
	maxParts       = 10_000
	copyWhole      = 5 << 30
)

// Serve does not return in a process that Start has started: there it is the
// server, until its standard input ends. In others it does nothing.
func Serve() {
	if len(os.Args) != 2 || os.Args[1] != childArg {
		return
	}
	// A Ctrl-C reaches all processes of a terminal; the parent says when to stop.
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	if err := serve(bufio.NewReader(os.Stdin), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "s3 server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(in *bufio.Reader, out io.Writer) error {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return errors.New("no orders came")
	}
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		return fmt.Errorf("orders: %w", err)
	}
	store, err := metadata(o.Dir)
	if err != nil {
		return err
	}
	buckets := filepath.Join(o.Dir, "buckets")
	if err := os.MkdirAll(buckets, 0o700); err != nil {
		return err
	}
	opts := posix.PosixOpts{CopyObjectThreshold: copyWhole}
	opts.SetNewDirPerm(0o700)
	opts.SetNewFilePerm(0o600)
	disk, err := posix.New(buckets, store, opts)
	if err != nil {
		return err
	}
	root := middlewares.RootUserConfig{Access: o.AccessKeyID, Secret: o.SecretAccessKey}
	one := auth.NewIAMServiceSingle(auth.Account{Access: o.AccessKeyID, Secret: o.SecretAccessKey, Role: auth.RoleAdmin})
	s, err := s3api.New(disk, root, Region, one, nil, nil, nil, nil,
		s3api.WithQuiet(), s3api.WithKeepAlive(), s3api.WithMpMaxParts(maxParts), s3api.WithConcurrencyLimiter(maxConnections, maxConnections),
		s3api.WithOnListen(func() { fmt.Fprintln(out, ready) }))
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- s.ServeMultiPort([]string{o.Address}) }()
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(over)
	}()
	select {
	case err := <-failed:
		return err
	case <-over:
		err := s.ShutDown()
		disk.Shutdown()
		return err
	}
}

// metadata is where what is known of an object is kept: with its file, where the
// file system can, else in files beside. What was chosen once stays.
func metadata(dir string) (meta.MetadataStorer, error) {
	beside := filepath.Join(dir, "metadata")
	_, err := os.Stat(beside)
	if errors.Is(err, os.ErrNotExist) {
		if (meta.XattrMeta{}).Test(dir) == nil {
			return meta.XattrMeta{}, nil
		}
		err = os.Mkdir(beside, 0o700)
	}
	if err != nil {
		return nil, err
	}
	return meta.NewSideCar(beside)
}
