package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/cobra"
)

// build says what this program was made of.
type build struct {
	Version  string   `json:"version"`
	Commit   string   `json:"commit,omitempty"`
	Built    string   `json:"built,omitempty"` // the time of the commit
	Modified bool     `json:"modified,omitempty"`
	Go       string   `json:"go"`
	NATS     string   `json:"nats_server"`
	Drivers  []string `json:"drivers"`
	Platform string   `json:"platform"`
}

func buildInfo() build {
	b := build{Version: "(devel)", Go: runtime.Version(), NATS: natsserver.VERSION, Platform: runtime.GOOS + "/" + runtime.GOARCH}
	for _, engine := range engines() {
		b.Drivers = append(b.Drivers, string(engine))
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Built = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program, and what is in it",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b := buildInfo()
			return p.show(b, func(w io.Writer) {
				fmt.Fprintf(w, "athena       %s\n", b.Version)
				if b.Commit != "" {
					fmt.Fprintf(w, "commit       %s %s\n", b.Commit, b.Built)
				}
				fmt.Fprintf(w, "go           %s %s\nnats-server  %s\ndrivers      %s\n", b.Go, b.Platform, b.NATS, strings.Join(b.Drivers, ", "))
			})
		},
	}
}
