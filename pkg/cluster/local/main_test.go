package local_test

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/rollout"
)

// The test binary plays other processes of a machine when it is started with this
// variable, or with role=ROLE as its first argument.
const roleVar = "LOCAL_TEST_ROLE"

// quickExit spares processes under the race detector the second that they wait at their end.
const quickExit = "GORACE=atexit_sleep_ms=0"

var roles map[string]func(args []string) error

func init() { // not at the declaration: roles start the binary in other roles
	roles = map[string]func(args []string) error{
		"append":  roleAppend,
		"claim":   roleClaim,
		"ensure":  roleEnsure,
		"hold":    roleHold,
		"hashes":  roleHashes,
		"writing": roleWriting,
		"runner":  roleRunner,
		"sleeper": roleSleeper,
		"host":    roleHost,
		"gate":    roleGate,
		"server":  roleServer,
	}
}

func TestMain(m *testing.M) {
	role, args := os.Getenv(roleVar), os.Args[1:]
	if len(args) > 0 && strings.HasPrefix(args[0], "role=") {
		role, args = strings.TrimPrefix(args[0], "role="), args[1:]
	}
	if role != "" {
		if err := roles[role](args); err != nil {
			fmt.Fprintln(os.Stderr, role+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// They wait for processes and clocks more than they compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// process starts the test binary in a role.
func process(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role, quickExit)
	cmd.Stderr = os.Stderr
	t.Cleanup(func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// discard is for what these tests provoke on purpose.
func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// recorder is a logger whose text a test can read.
type recorder struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

func (r *recorder) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func newStore(t *testing.T, dir string) *local.Store {
	t.Helper()
	s, err := local.NewStore(dir, discard())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func roleAppend(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	first, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	s, err := local.NewStore(args[0], slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	for i := range n {
		if err := clustertest.Append(context.Background(), s, rollout.Key{Namespace: "models", Name: "fraud"}, int64(first+i)); err != nil {
			return err
		}
	}
	return nil
}

// roleWriting writes the status for ever, until it is killed.
func roleWriting(args []string) error {
	s, err := local.NewStore(args[0], discard())
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		e, err := s.Get(context.Background(), rollout.Key{Namespace: "models", Name: "fraud"})
		if err != nil {
			return err
		}
		e.Status.Demand = strconv.Itoa(i)
		e.Status.ScoringURI = strings.Repeat("x", i%5000)
		if _, err := s.UpdateStatus(context.Background(), e); err != nil {
			return err
		}
		if i == 0 {
			fmt.Println("writing")
		}
	}
}

func roleClaim(args []string) error {
	j, err := local.NewJournal(args[0], discard())
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	for i := 0; len(args) < 3 || strconv.Itoa(i) != args[2]; i++ {
		name := fmt.Sprintf("%s-%d", args[1], i)
		_, won, err := j.Claim(context.Background(), cluster.Entry{Name: name, Command: strings.Repeat("/promote ", 40)})
		if err != nil {
			return err
		}
		if won {
			fmt.Fprintln(out, name)
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func roleEnsure(args []string) error {
	k, err := local.NewKeys(args[0], discard())
	if err != nil {
		return err
	}
	made, err := k.EnsureKeys(context.Background(), rollout.Key{Namespace: "models", Name: "fraud"})
	if err != nil {
		return err
	}
	fmt.Println(made.Primary)
	return nil
}

func roleHashes(args []string) error {
	h, err := local.NewKeyHashes(args[0], discard())
	if err != nil {
		return err
	}
	c, err := h.WatchKeyHashes(context.Background())
	if err != nil {
		return err
	}
	for range c {
		m, err := h.KeyHashes(context.Background())
		if err != nil {
			return err
		}
		fmt.Println(len(m))
	}
	return nil
}

func roleHold(args []string) error {
	l, err := local.Lock(args[0])
	if err != nil {
		return err
	}
	defer func() { _ = l() }()
	fmt.Println("held")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
