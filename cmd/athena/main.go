// Command athena is the server, the worker and the command line of Athena.
//
// Each command has a file of its own; app.go wires the parts of the server
// together and is the one file that names concrete drivers.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/athena-pipelines/athena/pkg/locals3"
)

func main() {
	locals3.Serve() // in the process that dev starts as its S3 server
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills at once
	os.Exit(int(exitOf(run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))))
}
