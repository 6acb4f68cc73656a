package client_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/access/oidc"
	"github.com/sluice-dev/sluice/pkg/access/oidc/oidctest"
	"github.com/sluice-dev/sluice/pkg/api"
	"github.com/sluice-dev/sluice/pkg/api/apitest"
	"github.com/sluice-dev/sluice/pkg/api/client"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
)

const audience = "https://sluice.example"

// everything that a rule can permit, to the repository of oidctest's claims.
const everything = `
apiVersion: sluice.dev/v1alpha1
kind: APIPolicy
rules:
  - repositoryId: 74
    repositoryOwnerId: 65
    events: [push]
    namespaces: ["*"]
    endpoints: ["*"]
    commands: [read, deploy, update, traffic, promote, rollback, retire, prepare, hold, resume, lock, unlock, delete, delete-endpoint]
    allow: [create, template, secrets, force]
`

// world is a server with an issuer, on a store in memory.
type world struct {
	t       *testing.T
	issuer  *oidctest.Issuer
	store   *memory.Store
	journal *memory.Journal
	policy  string
	handler http.Handler
}

func newWorld(t *testing.T, policy string) *world {
	t.Helper()
	w := &world{t: t, issuer: oidctest.New(t), store: memory.NewStore(), journal: memory.NewJournal()}
	w.policy = policy
	w.handler = w.restart()
	return w
}

// restart is another server on what the world has. Sessions of the first mean nothing to it.
func (w *world) restart() http.Handler {
	w.t.Helper()
	v, err := oidc.New(oidc.Config{Issuer: w.issuer.URL, Audience: audience})
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := api.ParsePolicy([]byte(w.policy))
	if err != nil {
		w.t.Fatal(err)
	}
	h, err := api.New(api.Options{Store: w.store, Journal: w.journal, Tokens: v, Policy: p})
	if err != nil {
		w.t.Fatal(err)
	}
	return apitest.Checked(w.t, h)
}

// client of the server behind a handler; token gives what oidctest's jobs have.
func (w *world) client(h http.Handler) *client.Client {
	w.t.Helper()
	s := httptest.NewServer(h)
	w.t.Cleanup(s.Close)
	c, err := client.New(client.Options{URL: s.URL, Pause: 5 * time.Millisecond, Token: w.token})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) token(context.Context) (string, error) {
	return w.issuer.Sign(w.issuer.Claims(audience)), nil
}

func TestEditor(t *testing.T) {
	clustertest.Editor(t, func(t *testing.T) (cluster.Editor, cluster.Store) {
		w := newWorld(t, everything)
		return w.client(w.handler), w.store
	})
}
