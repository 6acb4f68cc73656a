package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	// exitInit is the runner's exit code when init() fails, as in Azure ML.
	exitInit = 3
	// startGrace is how long a process that never was ready may take to end.
	startGrace = 5 * time.Second
	// probeGrace is how long one that fails its liveness probe may take.
	probeGrace = 2 * time.Second
	// missesUnready is after how many polls without any answer a ready replica is
	// unready. An answer that says so is enough at once.
	missesUnready = 2
)

// replica is one place in a fleet. A goroutine runs its process, again and again,
// until the replica is to end.
type replica struct {
	host    *Host
	fleet   *fleet
	spec    cluster.FleetSpec // of its revision
	state   cluster.Replica   // guarded by host.mu
	stop    chan struct{}     // closed when it is to end
	log     *logFile
	logPath string
}

// startReplica needs h.mu.
func (h *Host) startReplica(f *fleet) {
	r := &replica{host: h, fleet: f, spec: f.spec, stop: make(chan struct{})}
	name := ""
	for name == "" || slices.ContainsFunc(f.replicas, func(r *replica) bool { return r.state.Name == name }) {
		name = f.spec.Key.Version + "-" + randomName(5)
	}
	r.logPath = filepath.Join(h.logs.dir(f.spec.Key), name+logSuffix)
	log, err := openLogFile(r.logPath, h.opts.LogBytes)
	if err != nil {
		h.log.Error("replica has no log", "replica", name, "err", err)
		log = &logFile{}
	}
	r.log = log
	r.state = cluster.Replica{Name: name, Revision: f.spec.Revision, State: cluster.ReplicaStarting, Reason: rollout.ReasonStarting}
	f.replicas = append(f.replicas, r)
	h.live++
	h.wg.Go(r.run)
}

// randomName avoids vowels and what looks alike, as Kubernetes does.
func randomName(n int) string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b)
}

// end marks the replica terminating, which routers see first, and lets its goroutine
// do the rest. It needs host.mu.
func (r *replica) end() {
	if r.state.State == cluster.ReplicaTerminating {
		return
	}
	r.state.State, r.state.Reason, r.state.Message, r.state.ReadySince = cluster.ReplicaTerminating, "", "", time.Time{}
	close(r.stop)
}

func (r *replica) ending() bool {
	select {
	case <-r.stop:
		return true
	default:
		return false
	}
}

// set changes the state unless the replica is terminating already.
func (r *replica) set(edit func(*cluster.Replica)) {
	r.host.mu.Lock()
	defer r.host.mu.Unlock()
	if r.state.State == cluster.ReplicaTerminating {
		return
	}
	was := r.state
	edit(&r.state)
	if r.state == was {
		return
	}
	if r.state.State != was.State {
		r.host.log.Info("replica", "name", r.state.Name, "fleet", r.spec.Key.String(), "state", r.state.State, "reason", r.state.Reason)
		r.host.settle(r.fleet)
	}
	r.host.changed()
}

// end of one process.
type ending struct {
	reason  rollout.Reason
	message string
	// started is false if there was no process.
	started bool
	// wasReady, and for how long at the end.
	wasReady bool
	healthy  time.Duration
}

func (r *replica) run() {
	h := r.host
	defer func() {
		r.log.close()
		h.mu.Lock()
		defer h.mu.Unlock()
		r.fleet.replicas = slices.DeleteFunc(r.fleet.replicas, func(x *replica) bool { return x == r })
		h.live--
		h.settle(r.fleet)
		for _, f := range h.fleets {
			if f.waits {
				h.settle(f)
			}
		}
		h.changed()
	}()
	var pause backoff
	for {
		e := r.once()
		if r.ending() {
			return
		}
		if e.healthy >= h.opts.RestartReset {
			pause = backoff{}
		}
		wait := pause.next(h.opts.RestartMin, h.opts.RestartMax, e.wasReady)
		h.log.Warn("replica ended", "name", r.state.Name, "fleet", r.spec.Key.String(), "reason", e.reason, "restart", wait.Round(time.Millisecond).String())
		r.log.note("%s; next start in %s", e.reason, wait.Round(time.Millisecond))
		r.set(func(s *cluster.Replica) {
			s.State, s.Reason, s.Message, s.ReadySince, s.Address = cluster.ReplicaFailed, e.reason, e.message, time.Time{}, ""
		})
		select {
		case <-r.stop:
			return
		case <-h.ctx.Done():
			return
		case <-time.After(wait):
		}
		r.set(func(s *cluster.Replica) {
			// Why it failed stays to be seen until it is ready.
			s.State = cluster.ReplicaStarting
			if e.started {
				s.Restarts++
			}
		})
	}
}

// backoff is the pause before the next start.
type backoff struct {
	began bool
	waits int // pauses so far, each twice as long
}

func (b *backoff) next(low, high time.Duration, wasReady bool) time.Duration {
	first := !b.began
	b.began = true
	if first && wasReady {
		return 0
	}
	d := low << min(b.waits, 20)
	if d <= 0 || d > high {
		d = high
	}
	b.waits++
	return time.Duration(float64(d) * (0.75 + 0.5*rand.Float64()))
}

// once runs one process from its start to its end.
func (r *replica) once() ending {
	h := r.host
	// Preparing and starting end early if the replica is to.
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	go func() {
		select {
		case <-r.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	launch, err := h.prepare(ctx, r.fleet, r.spec)
	if err != nil {
		var refusal *rollout.Error
		if !errors.As(err, &refusal) {
			refusal = &rollout.Error{Reason: rollout.ReasonInternal, Message: err.Error()}
		}
		return ending{reason: refusal.Reason, message: refusal.Message}
	}
	if ctx.Err() != nil {
		return ending{}
	}
	argv := slices.Concat(h.opts.RunnerCommand, []string{listenFlag, lifelineFlag}, launch.Args)
	h.mu.Lock()
	h.starts++
	mark := fmt.Sprintf("%s/%d/", h.run, h.starts)
	h.mu.Unlock()
	tail := &lastLines{}
	p, err := h.spawn.start(argv, launch.Dir, replicaEnv(h.opts.Env, launch.Env, mark+r.state.Name), io.MultiWriter(r.log, tail))
	if err != nil {
		return ending{reason: rollout.ReasonCrashed, message: err.Error()}
	}
	began := time.Now()
	r.log.note("started process %d, revision %s", p.pid(), r.spec.Revision)
	r.set(func(s *cluster.Replica) { s.Address = p.addr })
	m := &monitor{replica: r, process: p, began: began, probe: r.spec.Settings.LivenessProbe.Resolved()}
	e := m.watch()
	// What it started may have left its group; all of it carries the mark.
	if err := sweep(mark); err != nil {
		h.log.Warn("end what a replica left behind", "replica", r.state.Name, "err", err)
	}
	r.log.note("process %d ended after %s: %s", p.pid(), time.Since(began).Round(time.Millisecond), p.how())
	if e.reason == "" {
		e.reason, e.message = rollout.ReasonCrashed, p.how()
		if p.exitCode() == exitInit {
			e.reason, e.message = rollout.ReasonInitFailed, "init() failed"
		}
		if lines := tail.String(); lines != "" {
			e.message += ":\n" + lines
		}
	}
	return e
}

// monitor asks one process for its health and ends it when it is to end.
type monitor struct {
	*replica
	process *process
	began   time.Time
	probe   rollout.Probe

	wasReady   bool
	readySince time.Time
	unready    bool
	misses     int // polls in a row without an answer
	goods      int // good polls in a row
	// probed is when a poll last counted for liveness, probeFails how many of those failed in a row.
	probed     time.Time
	probeFails int
}

// health is the answer to one poll.
type health struct {
	// ok: 200. answered: some HTTP answer came.
	ok, answered bool
	message      string
}

func (m *monitor) watch() ending {
	transport := &http.Transport{MaxIdleConnsPerHost: 1, Proxy: nil, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: time.Duration(m.probe.TimeoutSeconds) * time.Second}
	polls, cancel := context.WithCancel(m.host.ctx)
	defer cancel()
	answers := make(chan health, 1)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-m.process.done:
			return m.ended()
		case <-m.host.ctx.Done():
			m.process.kill()
			<-m.process.done
			return m.ended()
		case <-m.stop:
			m.drain()
			return m.ended()
		case <-timer.C:
			go func() { answers <- poll(polls, client, m.process.addr) }()
		case a := <-answers:
			if m.judge(a) {
				e := m.ended()
				e.reason, e.message = rollout.ReasonProbeFailed, fmt.Sprintf("its liveness probe failed %d times in a row", m.probeFails)
				m.set(func(s *cluster.Replica) {
					s.State, s.Reason, s.Message, s.ReadySince = cluster.ReplicaUnready, e.reason, e.message, time.Time{}
				})
				m.finish(probeGrace)
				return e
			}
			timer.Reset(m.interval())
		}
	}
}

func (m *monitor) ended() ending {
	e := ending{started: true, wasReady: m.wasReady}
	if m.wasReady && !m.unready {
		e.healthy = time.Since(m.readySince)
	}
	return e
}

// interval to the next poll: often while something is awaited, less often as a start drags on.
func (m *monitor) interval() time.Duration {
	fast, slow := m.host.opts.PollStarting, m.host.opts.PollReady
	switch {
	case m.wasReady && !m.unready:
		return slow
	case m.wasReady:
		return min(4*fast, slow)
	default:
		return min(max(fast, time.Since(m.began)/40), 4*fast)
	}
}

// poll asks GET /, the runner's health.
func poll(ctx context.Context, client *http.Client, addr string) health {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return health{message: err.Error()}
	}
	resp, err := client.Do(req)
	if err != nil {
		return health{message: err.Error()}
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode == http.StatusOK {
		return health{ok: true, answered: true}
	}
	var said struct {
		Error struct{ Message string }
	}
	if json.Unmarshal(body, &said) != nil || said.Error.Message == "" {
		said.Error.Message = "its health check answers " + resp.Status
	}
	return health{answered: true, message: said.Error.Message}
}

// judge takes one answer into account and says whether the process must be replaced.
func (m *monitor) judge(a health) (dead bool) {
	now := time.Now()
	if a.ok {
		m.misses = 0
		m.goods++
	} else {
		m.misses++
		m.goods = 0
	}
	switch {
	case a.ok && (!m.wasReady || m.unready && m.goods >= m.probe.SuccessThreshold):
		m.wasReady, m.unready, m.readySince = true, false, now
		m.set(func(s *cluster.Replica) {
			s.State, s.Reason, s.Message, s.ReadySince = cluster.ReplicaReady, "", "", now
		})
	case !a.ok && m.wasReady && !m.unready && (a.answered || m.misses >= missesUnready):
		m.unready = true
		m.set(func(s *cluster.Replica) {
			s.State, s.Reason, s.Message, s.ReadySince = cluster.ReplicaUnready, rollout.ReasonProbeFailed, a.message, time.Time{}
		})
	}
	// Every so often a poll is the liveness probe, too.
	initial, period := time.Duration(m.probe.InitialDelaySeconds)*time.Second, time.Duration(m.probe.PeriodSeconds)*time.Second
	if now.Sub(m.began) < initial || now.Sub(m.probed) < period {
		return false
	}
	m.probed = now
	if a.ok {
		m.probeFails = 0
		return false
	}
	m.probeFails++
	return m.probeFails >= m.probe.FailureThreshold
}

// drain ends the process once routers know: SIGTERM, and SIGKILL when even the
// longest request must be over.
func (m *monitor) drain() {
	if !m.wasReady {
		m.finish(startGrace)
		return
	}
	select {
	case <-time.After(m.host.opts.Propagation):
	case <-m.process.done:
	case <-m.host.ctx.Done():
	}
	m.finish(m.spec.Settings.ScoringTimeout() + m.host.opts.DrainMargin)
}

func (m *monitor) finish(grace time.Duration) {
	m.process.terminate()
	select {
	case <-m.process.done:
		return
	case <-time.After(grace):
		m.host.log.Warn("replica did not end in time and is killed", "name", m.state.Name, "grace", grace.String())
		m.log.note("not ended within %s: killed", grace)
	case <-m.host.ctx.Done():
	}
	m.process.kill()
	<-m.process.done
}
