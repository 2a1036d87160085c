package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/config"
	"github.com/athena-pipelines/athena/pkg/telemetry"
)

// settings are the flags that stand for settings, common to serve and worker.
type settings struct {
	file      string
	sets      []string
	overrides map[string]any
}

// flags adds them. Those that are given win over the file and the environment.
func (s *settings) flags(cmd *cobra.Command) {
	s.overrides = map[string]any{}
	f := cmd.Flags()
	f.StringVar(&s.file, "config", "", "configuration file (ATHENA_CONFIG)")
	f.StringArrayVar(&s.sets, "set", nil, "set KEY=VALUE, as in the configuration file: limits.body_bytes=1MiB; may be repeated")
	s.text(cmd, "data", "data_dir", "directory for broker, keys and spool")
	s.text(cmd, "nats", "nats.url", "NATS servers, separated by commas; nats://user:password@host and nats://token@host are understood")
	s.text(cmd, "log-level", "log.level", "debug, info, warn or error")
	s.text(cmd, "log-format", "log.format", "text or json")
	must(cmd.RegisterFlagCompletionFunc("set", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var names []string
		for _, k := range config.Describe() {
			names = append(names, k.Path+"=\t"+k.Doc)
		}
		return names, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}))
}

// text adds a flag for one setting.
func (s *settings) text(cmd *cobra.Command, name, key, what string) {
	cmd.Flags().Func(name, what+" ("+key+")", func(value string) error {
		s.overrides[key] = value
		return nil
	})
}

// load reads the settings of the process.
func (s *settings) load(environ []string) (*config.Settings, error) {
	for _, set := range s.sets {
		key, value, ok := strings.Cut(set, "=")
		if !ok {
			return nil, usagef("--set is %q; write it as KEY=VALUE", set)
		}
		s.overrides[key] = value
	}
	if err := s.credentials(); err != nil {
		return nil, err
	}
	return config.Load(config.Config{File: s.file, Environ: environ, Overrides: s.overrides})
}

// credentials moves what a NATS URL of the command line holds of them into the
// settings that are made for them, and are never shown.
func (s *settings) credentials() error {
	text, ok := s.overrides["nats.url"].(string)
	if !ok {
		return nil
	}
	var plain []string
	for server := range strings.SplitSeq(text, ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil {
			return usagef("--nats holds something that is no URL; write it as nats://host:4222")
		}
		if user := u.User; user != nil {
			if password, both := user.Password(); both {
				s.overrides["nats.user"], s.overrides["nats.password"] = user.Username(), password
			} else {
				s.overrides["nats.token"] = user.Username()
			}
			u.User = nil
		}
		plain = append(plain, u.String())
	}
	s.overrides["nats.url"] = strings.Join(plain, ",")
	return nil
}

// settingsHelp lists the settings as the configuration has them.
func settingsHelp() string {
	var b strings.Builder
	b.WriteString(`Settings come from a YAML file (--config or ATHENA_CONFIG), over it the environment,
and over that --set and the other flags. The key a.b is the variable ATHENA_A_B.

`)
	for _, k := range config.Describe() {
		fmt.Fprintf(&b, "  %s\n      %s\n", k.Path, k.Doc)
		if k.Allowed != "" {
			fmt.Fprintf(&b, "      %s\n", k.Allowed)
		}
		if k.Default != "" {
			fmt.Fprintf(&b, "      default %s\n", k.Default)
		}
	}
	return b.String()
}

func (p *program) serveCommand() *cobra.Command {
	s := &settings{}
	var alone bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the API, with broker and worker inside",
		Long: `Runs the HTTP API. Unless told otherwise it keeps its own broker in the data
directory and runs a worker inside.

On an empty data directory the first admin key is made and written to standard error,
this once; or it is taken from ATHENA_ADMIN_KEY. With --json one line is written to
standard output when the server is ready.`,
		Example: `  athena serve
  athena serve --data /var/lib/athena --listen 127.0.0.1:4052
  athena serve --nats nats://nats.internal:4222 --no-worker
  athena serve --set nats.embedded.listen=127.0.0.1:4222 --set log.level=debug`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if alone {
				s.overrides["worker.enabled"] = false
			}
			cfg, err := s.load(p.environ)
			if err != nil {
				return err
			}
			return p.serve(cmd.Context(), cfg)
		},
	}
	s.flags(cmd)
	s.text(cmd, "listen", "listen", "address of the HTTP API, host:port")
	s.text(cmd, "auth", "auth", "on, or off for tests on loopback")
	s.text(cmd, "clients-dir", "clients_dir", "directory of client definitions to apply, at start and on change")
	cmd.Flags().BoolVar(&alone, "no-worker", false, "run no worker inside")
	return cmd
}

func (p *program) logger(cfg *config.Settings) (*slog.Logger, error) {
	log, err := telemetry.NewLogger(p.stderr, cfg.Log.Level, cfg.Log.Format)
	if err == nil && len(cfg.Ignored) > 0 {
		log.Warn("environment variables that are no settings are ignored", "names", strings.Join(cfg.Ignored, ", "))
	}
	return log, err
}

// holdMemory halves the usual slack of the heap: what lives is small, and what
// passes through is large, as are segments of results and groups of changes.
func (p *program) holdMemory() {
	if p.getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// serve runs a whole server until ctx is done.
func (p *program) serve(ctx context.Context, cfg *config.Settings) error {
	p.holdMemory()
	log, err := p.logger(cfg)
	if err != nil {
		return err
	}
	s, err := p.newServer(ctx, cfg, p.getenv("ATHENA_ADMIN_KEY"), log)
	if err != nil {
		return err
	}
	if s.adminKey != "" {
		fmt.Fprintf(p.stderr, "\n  The first admin key, shown only now:\n\n    %s\n\n", s.adminKey)
	}
	return s.run(ctx, func() {
		log.Info("ready", "url", s.url, "data", cfg.DataDir)
		if p.asJSON {
			_ = writeLine(p.stdout, map[string]string{"url": s.url, "nats_url": s.natsURL})
		}
	})
}

// server is a process that answers HTTP.
type server struct {
	*app
	url, natsURL string
	adminKey     string // the first one, if it was made just now
	parts        []func(context.Context) error
}

// newServer makes a server, which listens already and answers once it runs.
// The admin key is one to be let in; if it is empty, and no key is known, one is
// made. What the server holds is given back at the end of run.
func (p *program) newServer(ctx context.Context, cfg *config.Settings, adminKey string, log *slog.Logger) (s *server, err error) {
	a, err := newApp(ctx, cfg, p.getenv, log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	s = &server{app: a}
	if cfg.Auth == "on" {
		if s.adminKey, err = a.keys.Bootstrap(ctx, adminKey); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; choose another address with --listen", cfg.Listen, err)
	}
	answer, err := a.server(ln)
	if err != nil {
		ln.Close()
		return nil, err
	}
	scheme := "http"
	if cfg.TLS.CertFile != "" {
		scheme = "https"
	}
	s.url = scheme + "://" + ln.Addr().String()
	if a.broker.server != nil {
		s.natsURL = a.broker.server.URL()
	}
	s.natsURL = cmp.Or(s.natsURL, cfg.NATS.URL)
	figures := newPipelineFigures(a.runs, log)
	a.metrics.Pipelines(figures.figures)
	s.parts = append(s.parts, answer, figures.run)
	if cfg.Worker.Enabled {
		s.parts = append(s.parts, a.worker())
	}
	if cfg.ClientsDir != "" {
		s.parts = append(s.parts, a.definitions())
	}
	return s, nil
}

// run serves until ctx is done. It calls ready, once, when requests can be
// answered.
func (s *server) run(ctx context.Context, ready func()) error {
	defer s.close()
	announce := func(ctx context.Context) error {
		err := errors.Join(s.catalog.Ready(ctx), s.keys.Ready(ctx), s.changes.Ready(ctx))
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			debug.FreeOSMemory() // what the start took, the server does not need again
			unmapStart()
			ready()
		}
		return err
	}
	return s.app.run(ctx, append(s.parts, announce)...)
}
