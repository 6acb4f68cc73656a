package supervisor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/cluster/internal/node"
)

// restartDelay lies between the end of a component and its next start.
const restartDelay = time.Second

// reaper starts processes and waits for them. The first process of a namespace inherits every orphan,
// containerd's shims among them, so that it has to wait for whatever ends; os/exec, which waits for
// its own, would race with that.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan<- syscall.WaitStatus
	signals chan os.Signal
}

func newReaper() *reaper {
	r := &reaper{waiting: map[int]chan<- syscall.WaitStatus{}, signals: make(chan os.Signal, 1)}
	signal.Notify(r.signals, unix.SIGCHLD)
	return r
}

// start starts path; the channel gets its end.
func (r *reaper) start(path string, args []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	// Held until it is noted, so that run cannot reap it before.
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return 0, nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	r.waiting[pid] = ended
	return pid, ended, nil
}

func (r *reaper) run() {
	for range r.signals {
		for r.reap() {
		}
	}
}

func (r *reaper) reap() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	if err == syscall.EINTR { //nolint:errorlint // a bare errno
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if ended, ok := r.waiting[pid]; ok {
		delete(r.waiting, pid)
		ended <- status
	}
	return true
}

// components are all programs of a cluster.
type components struct {
	all []*component
}

type component struct {
	node.Component
	reaper *reaper
	log    string
	client *http.Client
	after  *component

	mu       sync.Mutex
	changed  *sync.Cond
	held     bool
	pid      int
	restarts int
	lastEnd  string
	ready    bool
}

// ComponentStatus is how a component is doing.
type ComponentStatus struct {
	Name string `json:"name"`
	// PID is its process inside, 0 if there is none.
	PID int `json:"pid"`
	// Held says that it was killed and is kept down.
	Held bool `json:"held"`
	// Ready says that it has answered since its start, or that it runs if it is not asked.
	Ready    bool   `json:"ready"`
	Restarts int    `json:"restarts"`
	LastEnd  string `json:"lastEnd,omitempty"`
}

func newComponents(n node.Node, r *reaper) (*components, error) {
	ca, err := os.ReadFile(n.CA())
	if err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true},
	}
	c := &components{}
	byName := map[string]*component{}
	for _, spec := range n.Components() {
		one := &component{
			Component: spec, reaper: r, client: client, after: byName[spec.After],
			log: filepath.Join(n.Logs(), spec.Name+".log"),
		}
		one.changed = sync.NewCond(&one.mu)
		byName[spec.Name] = one
		c.all = append(c.all, one)
	}
	return c, nil
}

func (c *components) run(ctx context.Context) {
	for _, one := range c.all {
		go one.run(ctx)
	}
}

func (c *components) find(name string) (*component, error) {
	var names []string
	for _, one := range c.all {
		if one.Name == name {
			return one, nil
		}
		names = append(names, one.Name)
	}
	return nil, fmt.Errorf("find component %q: there are %s", name, strings.Join(names, ", "))
}

func (c *components) status() []ComponentStatus {
	all := make([]ComponentStatus, len(c.all))
	for i, one := range c.all {
		one.mu.Lock()
		all[i] = ComponentStatus{
			Name: one.Name, PID: one.pid, Held: one.held, Ready: one.ready,
			Restarts: one.restarts, LastEnd: one.lastEnd,
		}
		one.mu.Unlock()
	}
	return all
}

// run keeps the component running, except while it is held.
func (c *component) run(ctx context.Context) {
	if c.after != nil {
		c.after.waitReady()
	}
	for {
		c.mu.Lock()
		for c.held {
			c.changed.Wait()
		}
		ended, err := c.start()
		pid := c.pid
		c.mu.Unlock()
		if err == nil {
			go c.watch(ctx, pid)
		}

		end := "could not start"
		if err == nil {
			end = describe(<-ended)
		}
		c.mu.Lock()
		c.pid, c.ready = 0, false
		c.lastEnd = fmt.Sprintf("%s %s", time.Now().UTC().Format(time.TimeOnly), end)
		if err != nil {
			c.lastEnd += ": " + err.Error()
		}
		held := c.held
		c.changed.Broadcast()
		c.mu.Unlock()
		fmt.Printf("%s: %s\n", c.Name, end)
		if !held {
			time.Sleep(restartDelay)
			c.mu.Lock()
			c.restarts++
			c.mu.Unlock()
		}
	}
}

// start needs the lock.
func (c *component) start() (<-chan syscall.WaitStatus, error) {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	pid, ended, err := c.reaper.start(c.Path, c.Args, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	c.pid = pid
	c.changed.Broadcast()
	return ended, nil
}

// kill kills it as by kill -9 and keeps it down; it has ended when kill returns.
func (c *component) kill() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = true
	for c.pid != 0 {
		if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
			return fmt.Errorf("kill %s: %w", c.Name, err)
		}
		c.changed.Wait()
	}
	return nil
}

// release starts it again after kill; it is ready when release returns.
func (c *component) release(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	c.changed.Broadcast()
	defer context.AfterFunc(ctx, c.changed.Broadcast)()
	for !c.ready {
		if ctx.Err() != nil {
			return fmt.Errorf("start %s: %w; its last end: %s", c.Name, ctx.Err(), c.lastEnd)
		}
		c.changed.Wait()
	}
	return nil
}

// watch notes when the process pid is ready.
func (c *component) watch(ctx context.Context, pid int) {
	for c.Ready != "" && !c.answers(ctx) {
		time.Sleep(50 * time.Millisecond)
		c.mu.Lock()
		gone := c.pid != pid
		c.mu.Unlock()
		if gone {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid == pid {
		c.ready = true
		c.changed.Broadcast()
		fmt.Printf("%s: ready\n", c.Name)
	}
}

func (c *component) waitReady() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.ready {
		c.changed.Wait()
	}
}

func (c *component) answers(ctx context.Context) bool {
	if strings.HasPrefix(c.Ready, "http") {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Ready, nil)
		if err != nil {
			return false
		}
		response, err := c.client.Do(request)
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	}
	network := "tcp"
	if strings.HasPrefix(c.Ready, "/") {
		network = "unix"
	}
	conn, err := net.DialTimeout(network, c.Ready, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "ended by signal " + status.Signal().String()
	}
	return fmt.Sprintf("ended with code %d", status.ExitStatus())
}
