package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// A Server serves a handler until it is told to stop. Zero fields stand for
// their defaults.
type Server struct {
	Handler http.Handler // must be set
	// TLS, if set, protects the listener, and must hold a certificate.
	TLS *tls.Config

	ReadHeaderTimeout time.Duration // 10 s
	IdleTimeout       time.Duration // 120 s
	MaxHeaderBytes    int           // 64 KiB
	// Linger is how long requests are still taken after readiness went off, so
	// that a load balancer sees it in time; none by default.
	Linger time.Duration
	// Grace is how long requests under way may take after that; 20 s, of which
	// Linger is a part.
	Grace time.Duration
	Log   *slog.Logger // nil logs nothing
}

// Run serves ln until ctx is done, then stops in order: readiness goes off and
// streams are told (Draining), the listener closes, requests under way finish.
// What is still under way after Grace is cut off, and Run returns an error.
// Run closes ln.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	draining := make(chan struct{})
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	base = context.WithValue(base, drainKey{}, (<-chan struct{})(draining))
	srv := &http.Server{
		Handler:           s.Handler,
		ReadHeaderTimeout: cmp.Or(s.ReadHeaderTimeout, 10*time.Second),
		IdleTimeout:       cmp.Or(s.IdleTimeout, 120*time.Second),
		MaxHeaderBytes:    cmp.Or(s.MaxHeaderBytes, 64<<10),
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		TLSConfig:         s.TLS,
	}
	failed := make(chan error, 1)
	go func() {
		if s.TLS != nil {
			failed <- srv.ServeTLS(ln, "", "")
			return
		}
		failed <- srv.Serve(ln)
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("api: serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}

	close(draining)
	deadline, stop := context.WithTimeout(context.WithoutCancel(ctx), cmp.Or(s.Grace, 20*time.Second))
	defer stop()
	if s.Linger > 0 {
		srv.SetKeepAlivesEnabled(false)
		select {
		case <-time.After(s.Linger):
		case <-deadline.Done():
		}
	}
	err := srv.Shutdown(deadline)
	if err != nil {
		cancel()
		err = fmt.Errorf("api: requests were still under way when the grace period ended: %w", errors.Join(err, srv.Close()))
	}
	<-failed
	return err
}

type drainKey struct{}

// Draining is closed when the server that a request came in by begins to stop:
// long polls answer and streams end then. It is nil, and never ready, for a
// request that came in by no Server.
func Draining(ctx context.Context) <-chan struct{} {
	ch, _ := ctx.Value(drainKey{}).(<-chan struct{})
	return ch
}

// IsDraining reports whether Draining is closed.
func IsDraining(ctx context.Context) bool {
	select {
	case <-Draining(ctx):
		return true
	default:
		return false
	}
}
