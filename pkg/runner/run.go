package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// Run serves as the options say until ctx ends, then drains and returns nil. It returns
// an error if it cannot start or cannot go on; [ExitCode] of it is the exit code.
// Nothing it started is left running when it returns.
func Run(ctx context.Context, o Options) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	ln := o.Listener
	if ln == nil {
		if ln, err = net.Listen("tcp", o.Listen); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	defer func() { _ = ln.Close() }()

	out, closeOut, err := childOutput(o.Output)
	if err != nil {
		return err
	}
	defer closeOut()
	spawn := newSpawner(o.Logger, out)
	defer spawn.close()

	g := newGate(&o)
	switch {
	case o.isWorker():
		g.engine = &pool{o: &o, spawn: spawn}
	case o.Upstream != "":
		g.engine = newFront(&o, o.Upstream)
	default:
		if g.engine, err = newCommand(&o, spawn, ln.Addr()); err != nil {
			return err
		}
	}

	// What runs behind the gate outlives ctx: it serves until the gate has drained.
	engineCtx, stopEngine := context.WithCancelCause(context.WithoutCancel(ctx))
	var background sync.WaitGroup
	defer background.Wait()
	defer stopEngine(errAbrupt)
	if o.reap {
		background.Go(func() { spawn.reapOrphans(engineCtx) })
	}
	engineDone := make(chan error, 1)
	background.Go(func() { engineDone <- g.engine.run(engineCtx, g) })

	server := &http.Server{
		Handler: g,
		// Whoever sends a request must not dawdle: ReadTimeout covers what the handlers do
		// not cover by deadlines of their own.
		ReadHeaderTimeout: o.stall,
		ReadTimeout:       o.stall,
		IdleTimeout:       5 * time.Minute, // longer than a router keeps connections
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return engineCtx },
	}
	serverDone := make(chan error, 1)
	background.Go(func() { serverDone <- server.Serve(ln) })
	defer func() { _ = server.Close() }()
	o.Logger.Info("gate listening", "address", ln.Addr().String(), "slots", o.MaxConcurrentRequests)

	orphaned := make(chan struct{})
	if o.Lifeline != nil {
		// Never closed here: where the owner shares one pipe among its replicas, it can be in
		// blocking mode, and Close would wait for a Read that ends only with the owner.
		go func() {
			_, _ = io.Copy(io.Discard, o.Lifeline)
			close(orphaned)
		}()
	}

	select {
	case <-ctx.Done():
	case <-orphaned:
		stopEngine(errAbrupt)
		return errors.New("the owner of this replica is gone")
	case err := <-serverDone:
		return fmt.Errorf("serve: %w", err)
	case err := <-engineDone:
		g.drain()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
		defer cancel()
		_ = server.Shutdown(last) // let the answers leave that say what happened
		return err
	}

	// Drain: refuse what is new, finish what is in flight, then close.
	g.drain()
	linger := o.DrainLinger
	if !g.wasReady() {
		linger = 0 // no router has ever seen it ready
	}
	o.Logger.Info("draining", "timeout", o.DrainTimeout.String())
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.DrainTimeout)
	defer cancel()
	drained := make(chan error, 1)
	background.Go(func() { drained <- g.drained(limit, linger) })
	select {
	case err = <-drained:
	case <-orphaned:
		err = errors.New("the owner of this replica is gone")
	case err = <-engineDone: // nothing left to wait for
		engineDone <- err
	}
	if err != nil {
		o.Logger.Warn("drained in part", "err", err)
	} else if err = server.Shutdown(limit); err != nil {
		o.Logger.Warn("drained in part", "err", err)
	}
	if err != nil {
		stopEngine(errAbrupt)
	} else {
		stopEngine(nil)
	}
	cancel()
	if err := <-engineDone; err != nil {
		o.Logger.Warn("ended while draining", "err", err)
	}
	o.Logger.Info("drained")
	return nil
}

// settle is how long answers and output may still take to leave once what made them is
// gone.
const settle = 2 * time.Second

// childOutput is the file that children write to, which ends up in w, and a function
// that waits, for a moment, until all of it has.
func childOutput(w io.Writer) (*os.File, func(), error) {
	if f, ok := w.(*os.File); ok {
		return f, func() {}, nil
	}
	r, out, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("open output pipe: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(w, r)
		if err != nil {
			_, _ = io.Copy(io.Discard, r) // a log that fails must not block the worker
		}
	}()
	return out, func() {
		_ = out.Close()
		select {
		case <-done:
		case <-time.After(settle): // a process that left its group holds it open
			_ = r.Close()
			<-done
		}
		_ = r.Close()
	}, nil
}
