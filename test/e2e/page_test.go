package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestPage: `sluice up` shows what it runs, and tells of a change made by another process.
func TestPage(t *testing.T) {
	s := start(t)
	s.must("deploy", "--version", "base", project(t, "fraud", "base", quick, ""))
	s.must("wait", "fraud", "base", "--for=ready")
	url := "http://" + s.at.API
	shows := func(what string) func() error {
		return func() error {
			resp, err := http.Get(url + "/endpoints/default/fraud")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(string(b), what)) {
				err = fmt.Errorf("%s, without %q", resp.Status, what)
			}
			return err
		}
	}
	eventually(t, 10*time.Second, "the version on the page", shows(`aria-label="Shares: base 100 per cent"`))

	resp, err := http.Get(url + "/apis/sluice/v1/events?endpoint=default/fraud")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	told := make(chan string, 100)
	go func() {
		defer close(told)
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && data != "{}" {
				told <- data
			}
		}
	}()
	if first := <-told; first != `{"all":true}` {
		t.Errorf("the first event is %s", first)
	}
	s.must("hold", "fraud", "--reason", "before the sale")
	select {
	case data := <-told:
		if data != `{"endpoints":["default/fraud"]}` {
			t.Errorf("told of %s", data)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing is told of a hold")
	}
	eventually(t, 10*time.Second, "the hold on the page", shows("before the sale"))
}
