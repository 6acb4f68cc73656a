package process

import (
	"flag"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	f := flag.NewFlagSet("x", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	n, s := f.Int("max-things", 1, ""), f.String("state", "", "")
	if err := Parse(f, []string{"--state=/a"}, []string{"SLUICE_STATE=/b", "SLUICE_MAX_THINGS=3", "SLUICE_MAX_THINGS=4"}, "SLUICE_"); err != nil || *n != 4 || *s != "/a" {
		t.Errorf("got %d, %q, %v; want the last variable, and the flag before its variable", *n, *s, err)
	}
	f = flag.NewFlagSet("x", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Int("n", 1, "")
	if err := Parse(f, nil, []string{"SLUICE_N=many"}, "SLUICE_"); err == nil || !strings.Contains(err.Error(), "SLUICE_N") {
		t.Errorf("got %v, want the variable named", err)
	}
	if err := Parse(f, []string{"stray"}, nil, "SLUICE_"); err == nil {
		t.Error("a stray argument was accepted")
	}
}

func TestStateDir(t *testing.T) {
	for _, tc := range []struct {
		env  []string
		want string
	}{
		{[]string{"HOME=/h"}, "/h/.local/state/sluice"}, {[]string{"HOME=/h", "XDG_STATE_HOME=/x"}, "/x/sluice"},
	} {
		if got, err := StateDir(tc.env); err != nil || got != tc.want {
			t.Errorf("%v: %q, %v; want %q", tc.env, got, err, tc.want)
		}
	}
	if _, err := StateDir(nil); err == nil {
		t.Error("no home and no complaint")
	}
}

func TestInheritedListenerAndLifeline(t *testing.T) {
	l, err := Listener(-1, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	again, err := Listener(handOver(t, file), "")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Addr().String() != addr {
		t.Errorf("took over %s, want %s", again.Addr(), addr)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := WithLifeline(t.Context(), handOver(t, r))
	defer stop()
	if ctx.Err() != nil {
		t.Fatal("ended while the other end is open")
	}
	w.Close()
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
		t.Error("the lifeline broke and nothing ended")
	}
}

// handOver gives a descriptor of its own, as a child process gets it.
func handOver(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return fd
}
