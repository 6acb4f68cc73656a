package client_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/api/client"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/rollout"
)

// workflows: main makes the endpoint, pull requests deploy at 10 per cent at most.
const workflows = `
apiVersion: sluice.dev/v1alpha1
kind: APIPolicy
rules:
  - repositoryId: 74
    repositoryOwnerId: 65
    events: [push]
    refs: [refs/heads/main]
    namespaces: [models]
    endpoints: [fraud]
    commands: [deploy, promote]
    allow: [create]
  - repositoryId: 74
    repositoryOwnerId: 65
    events: [pull_request]
    namespaces: [models]
    endpoints: [fraud]
    commands: [deploy]
    maxPercent: 10
`

type shipped struct{ s deploy.Shipment }

func (f shipped) Ship(context.Context, string) (deploy.Shipment, error) { return f.s, nil }

// control plays the control role: versions get ready, but those called bad.
func (w *world) control(ctx context.Context) {
	for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		e, err := w.store.Get(ctx, fraud)
		if err != nil {
			continue
		}
		e.Status = rollout.Status{ScoringURI: "http://router.example", Summary: &rollout.Summary{Ready: fmt.Sprint(time.Now().UnixNano())}} // news all the time
		for _, v := range e.Spec.Versions {
			s := rollout.VersionStatus{Name: v.Name, State: rollout.StateReady, ReadyReplicas: 1, Replicas: 1}
			if strings.HasPrefix(v.Name, "bad") {
				s = rollout.VersionStatus{Name: v.Name, State: rollout.StateFailed, Reason: rollout.ReasonInitFailed, Message: "no model"}
			}
			e.Status.Versions = append(e.Status.Versions, s)
		}
		_, _ = w.store.UpdateStatus(ctx, e)
	}
}

// TestDeploy is a repository's life: a first version from main, treatments from pull requests, one of which fails, a promotion.
func TestDeploy(t *testing.T) {
	w := newWorld(t, workflows)
	server := httptest.NewServer(w.handler)
	t.Cleanup(server.Close)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); w.control(ctx) }()
	defer func() { stop(); <-ended }()

	job := func(change map[string]any) *client.Client {
		c, err := client.New(client.Options{URL: server.URL, Pause: 5 * time.Millisecond, Token: func(context.Context) (string, error) {
			claims := w.issuer.Claims(audience)
			for k, v := range change {
				claims[k] = v
			}
			return w.issuer.Sign(claims), nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	pull := func(n int) map[string]any {
		return map[string]any{"event_name": "pull_request", "ref": fmt.Sprintf("refs/pull/%d/merge", n), "sha": strings.Repeat("e", 40)}
	}
	const head = "1f2e3d4c5b6a79881726354453627180f0e0d0c0"
	run := func(c cluster.Editor, name string, digit byte, source rollout.Source, percent rollout.Percent) (deploy.Result, error) {
		o := deploy.Options{
			Namespace: fraud.Namespace, Timeout: 10 * time.Second, Endpoints: c, Actor: "made up", Source: source,
			Shipper: shipped{deploy.Shipment{Endpoint: fraud.Name, Name: name, Image: clustertest.Image(digit)}},
		}
		if percent > 0 {
			o.Percent = &percent
		}
		return deploy.Run(t.Context(), o)
	}
	version := func(name string) rollout.Version {
		t.Helper()
		e, err := w.store.Get(t.Context(), fraud)
		if err != nil || e.Spec.Version(name) == nil {
			t.Fatalf("%s: %v", name, err)
		}
		return *e.Spec.Version(name)
	}
	ten := 10 * rollout.OnePercent

	if _, err := run(job(pull(41)), "pr-41-1", 'a', rollout.Source{RepositoryID: 74, PullRequest: 41}, ten); rollout.ReasonOf(err) != rollout.ReasonDenied {
		t.Errorf("a pull request made the endpoint: %v", err)
	}
	res, err := run(job(nil), "sha-1f2e3d4", 'a', rollout.Source{RepositoryID: 74, Commit: head}, 0)
	if err != nil || !res.First || version("sha-1f2e3d4").Type != rollout.Control {
		t.Fatalf("%+v, %v", res, err)
	}
	if res, err = run(job(nil), "sha-1f2e3d4", 'a', rollout.Source{RepositoryID: 74, Commit: head}, 0); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	res, err = run(job(pull(41)), "pr-41-1", 'b', rollout.Source{RepositoryID: 74, PullRequest: 41, Commit: strings.Repeat("f", 40)}, ten)
	if v := version("pr-41-1"); err != nil || v.Type != rollout.Treatment || v.TrafficPercentile != ten || v.Source.PullRequest != 41 || v.Source.RunID != 1001 {
		t.Errorf("%+v, %v, %+v", res, err, v)
	}
	if _, err = run(job(pull(42)), "pr-42-1", 'c', rollout.Source{RepositoryID: 74}, 2*ten); rollout.ReasonOf(err) != rollout.ReasonDenied {
		t.Errorf("more than it may: %v", err)
	}
	_, err = run(job(pull(43)), "bad", 'd', rollout.Source{RepositoryID: 74}, ten)
	if v := version("bad"); rollout.ReasonOf(err) != rollout.ReasonInitFailed || v.RetiredAt.IsZero() || v.Type != rollout.Untyped {
		t.Errorf("one that fails: %v, %+v", err, v)
	}
	// A push to the pull request takes its place.
	_, err = run(job(pull(41)), "pr-41-2", 'e', rollout.Source{RepositoryID: 74, PullRequest: 41, Commit: strings.Repeat("d", 40)}, ten)
	if err != nil || version("pr-41-2").Type != rollout.Treatment || version("pr-41-1").Type != rollout.Untyped {
		t.Errorf("%v", err)
	}
	promote := func(*rollout.Endpoint) (rollout.Op, error) { return rollout.Promote{Version: "pr-41-2"}, nil }
	if _, _, err := job(pull(41)).Edit(t.Context(), fraud, request("p1"), promote); rollout.ReasonOf(err) != rollout.ReasonDenied {
		t.Errorf("a pull request promotes: %v", err)
	}
	if _, _, err := job(nil).Edit(t.Context(), fraud, request("p2"), promote); err != nil || version("pr-41-2").Type != rollout.Control {
		t.Errorf("%v", err)
	}
	// Nobody else's job gets anywhere.
	for name, change := range map[string]map[string]any{
		"another repository":      {"repository_id": "99"},
		"pull_request_target":     {"event_name": "pull_request_target"},
		"another audience":        {"aud": "https://other.example"},
		"a repository with a new": {"repository_owner_id": "1"},
	} {
		_, err := run(job(change), "sha-"+strings.Repeat("a", 7), 'f', rollout.Source{}, 0)
		if r := rollout.ReasonOf(err); r != rollout.ReasonDenied && r != rollout.ReasonTokenInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	e, _ := w.store.Get(t.Context(), fraud)
	for _, c := range e.Spec.Changes {
		if c.Actor != "github:octocat@octo-org/octo-repo#1001" || !strings.HasPrefix(c.ID, "api-74-deploy-") && c.ID != "api-74-p2" {
			t.Errorf("recorded %+v", c)
		}
	}
}
