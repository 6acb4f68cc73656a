package action

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/access/oidc"
	"github.com/sluice-dev/sluice/pkg/access/oidc/oidctest"
	"github.com/sluice-dev/sluice/pkg/api"
	"github.com/sluice-dev/sluice/pkg/api/apitest"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/rollout"
)

// TestServer deploys through the API: GitHub makes a token for the job, and the server's policy says what that may do.
func TestServer(t *testing.T) {
	w := newWorld(t)
	issuer := oidctest.New(t)
	var job map[string]any
	gh := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer runtime" {
			out.WriteHeader(http.StatusUnauthorized)
			return
		}
		claims := issuer.Claims(r.URL.Query().Get("audience"))
		claims["repository_id"], claims["run_id"] = fmt.Sprint(repositoryID), fmt.Sprint(1000+w.runs)
		for k, v := range job {
			claims[k] = v
		}
		_ = json.NewEncoder(out).Encode(map[string]string{"value": issuer.Sign(claims)})
	}))
	t.Cleanup(gh.Close)
	server := httptest.NewUnstartedServer(nil)
	audience := "http://" + server.Listener.Addr().String()
	tokens, err := oidc.New(oidc.Config{Issuer: issuer.URL, Audience: audience})
	if err != nil {
		t.Fatal(err)
	}
	policy, err := api.ParsePolicy([]byte(fmt.Sprintf(`
apiVersion: sluice.dev/v1alpha1
kind: APIPolicy
rules:
  - {repositoryId: %[1]d, repositoryOwnerId: 65, events: [push], namespaces: [models], endpoints: [fraud], commands: [deploy, promote], allow: [create]}
  - {repositoryId: %[1]d, repositoryOwnerId: 65, events: [pull_request], namespaces: [models], endpoints: [fraud], commands: [deploy], maxPercent: 10}
`, repositoryID)))
	if err != nil {
		t.Fatal(err)
	}
	handler, err := api.New(api.Options{Store: w.store, Journal: memory.NewJournal(), Tokens: tokens, Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = apitest.Checked(t, handler)
	server.Start()
	t.Cleanup(server.Close)
	inputs := func(more ...string) []string {
		return append(with("server", server.URL, "namespace", "models", "endpoint-key", "a-key", "timeout", "20s"), more...)
	}
	env := []string{"ACTIONS_ID_TOKEN_REQUEST_URL=" + gh.URL + "/token?api-version=2", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=runtime"}

	job = map[string]any{"sha": strings.Repeat("a", 40)}
	w.step(push('a'), inputs(), env...).ok(t, "deployed")
	job = map[string]any{"event_name": "pull_request", "ref": "refs/pull/3/merge", "sha": strings.Repeat("e", 40)}
	out := w.step(pullRequest(3, 'b'), inputs("traffic-percentile", "10"), env...).ok(t, "deployed")
	v := w.endpoint().Spec.Version("pr-3-bbbbbbb")
	if v == nil || v.Type != rollout.Treatment || v.TrafficPercentile != 10*rollout.OnePercent || v.Source.RunID != 1002 {
		t.Errorf("deployed %+v", v)
	}
	masked := 0
	for line := range strings.SplitSeq(out.log, "\n") {
		if strings.HasPrefix(line, "::add-mask::eyJ") {
			masked++
		} else if strings.Contains(line, "eyJ") {
			t.Errorf("a token is in the log: %s", line)
		}
	}
	if masked != 1 {
		t.Errorf("%d tokens were asked for, want 1", masked)
	}
	w.step(pullRequest(3, 'b'), inputs("command", "promote"), env...).refused(t, rollout.ReasonDenied)
	w.step(pullRequest(3, 'c'), inputs("traffic-percentile", "20"), env...).refused(t, rollout.ReasonDenied)
	w.step(pullRequest(3, 'b'), inputs("server-audience", "https://other.example"), env...).refused(t, rollout.ReasonTokenInvalid)
	job["repository_id"] = "99"
	w.step(pullRequest(3, 'd'), inputs(), env...).refused(t, rollout.ReasonDenied)
}
