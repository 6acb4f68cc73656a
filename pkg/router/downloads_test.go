package router

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

func TestReader(t *testing.T) {
	const part = 32 << 10
	for name, x := range map[string]struct {
		waits time.Duration // for each part
		parts int           // that it is given
		all   bool          // that it may take all of them
	}{
		"fast":           {0, 1 << 20, true},
		"at the rate":    {500 * time.Millisecond, 590, true},
		"for too long":   {500 * time.Millisecond, 610, false},
		"half the rate":  {time.Second, 39, true},
		"half, too long": {time.Second, 41, false},
		"a long pause":   {19 * time.Second, 1, true},
		"nothing":        {20 * time.Second, 1, false},
	} {
		r := reader{limits: defaultDownloads()}
		for range x.parts {
			r.took(part, x.waits)
		}
		if name == "nothing" {
			r = reader{limits: defaultDownloads()}
			r.took(0, x.waits)
		}
		if all := r.left() > 0; all != x.all {
			t.Errorf("%s: %v are left", name, r.left())
		}
	}
}

// A client that reads nothing of a large answer does not keep the only slot, whereas a replica that
// takes long over its answer is waited for.
func TestSlowReadersLoseTheirSlot(t *testing.T) {
	h := start(t, func(o *Options) {
		o.downloads = downloads{patience: 150 * time.Millisecond, rate: 1 << 34, most: time.Minute}
	}, version("a", rollout.Control, 0))
	g := newGate(t, 1, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("slowly") != "" {
			for range 4 {
				_, _ = io.WriteString(w, "part")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(200 * time.Millisecond)
			}
			return
		}
		for range 1 << 10 { // more than the buffers on the way hold
			if _, err := w.Write(make([]byte, 256<<10)); err != nil {
				return
			}
		}
	})
	h.fleets.set("a", g.addr())
	h.serving(map[string]int{"a": 1})
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	began := time.Now()
	_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", scoreURL, h.key)
	h.eventually("it is counted as given up", func() bool { return strings.Contains(h.metrics(), `reason="client_gone"`) })
	h.eventually("the slot is free", func() bool { return h.stats("a").InFlight == 0 })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the slot was free after %v", took)
	}
	if v := h.stats("a"); v.Bad != 0 || v.Failed != 0 {
		t.Errorf("%+v, want nothing bad", v)
	}
	if x := h.do(http.MethodGet, scoreURL+"?slowly=1", ""); x.status != 200 || x.body != "partpartpartpart" {
		t.Errorf("a slow stream: %+v", x)
	}
}
