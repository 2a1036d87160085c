package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/athena-pipelines/athena/pkg/config"
)

func (p *program) workerCommand() *cobra.Command {
	s := &settings{}
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run deferred queries for a server elsewhere",
		Long: `Runs deferred queries, and synchronous ones that the server cannot run itself. A
worker opens one connection, to NATS, and those to the databases of its clients; it
listens on nothing.

It serves the clients whose secrets it has: give it the environment variables and
files that their definitions refer to, and for sealed secrets the deployment's key in
ATHENA_SECRET_KEY.`,
		Example: `  athena worker --nats nats://athena.internal:4222
  athena worker --nats nats://user:password@athena.internal:4222 --clients shop,lake
  athena worker --nats tls://nats.internal:4222 --engines postgres`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := s.load(p.environ)
			if err != nil {
				return err
			}
			if cfg.NATS.URL == "" {
				return usagef("a worker needs the bus of a server; give --nats URL")
			}
			return p.work(cmd.Context(), cfg)
		},
	}
	s.flags(cmd)
	s.text(cmd, "clients", "worker.clients", "clients to serve, separated by commas; all that it can by default")
	s.text(cmd, "engines", "worker.engines", "engines to serve, separated by commas; all by default")
	s.text(cmd, "concurrency", "worker.concurrency", "jobs that run at once")
	s.text(cmd, "id", "worker.id", "the worker's name; host and process by default")
	must(cmd.RegisterFlagCompletionFunc("clients", p.completeClients))
	return cmd
}

// work runs a worker until ctx is done.
func (p *program) work(ctx context.Context, cfg *config.Settings) error {
	p.holdMemory()
	log, err := p.logger(cfg)
	if err != nil {
		return err
	}
	a, err := newApp(ctx, cfg, p.getenv, log)
	if err != nil {
		return err
	}
	defer a.close()
	return a.run(ctx, a.worker(), a.queries())
}
