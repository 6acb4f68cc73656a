package build

import (
	"context"
	"net"
	"os"
	"time"

	"github.com/moby/buildkit/client"
	// What an address may begin with beside unix and tcp.
	_ "github.com/moby/buildkit/client/connhelper/dockercontainer"
	_ "github.com/moby/buildkit/client/connhelper/kubepod"
	_ "github.com/moby/buildkit/client/connhelper/podmancontainer"
	_ "github.com/moby/buildkit/client/connhelper/ssh"
	docker "github.com/moby/moby/client"
)

// HostVariable has the address of a buildkitd, as for BuildKit's own programs.
const HostVariable = "BUILDKIT_HOST"

// answerTimeout bounds the first answer of a builder; one that runs answers at once.
const answerTimeout = 20 * time.Second

// engine is a builder that has answered.
type engine struct {
	client *client.Client
	// docker is nil for a buildkitd.
	docker *docker.Client
	// name is what it is called in messages.
	name string
}

func (e *engine) close() {
	_ = e.client.Close()
	if e.docker != nil {
		_ = e.docker.Close()
	}
}

// connect finds a builder. The error is a *rollout.Error, or the context's.
func (b Builder) connect(ctx context.Context) (*engine, error) {
	address := b.Address
	if address == "" {
		address = os.Getenv(HostVariable)
	}
	e, err := open(ctx, address)
	if err != nil {
		return nil, err
	}
	asked, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if _, err := e.client.ListWorkers(asked); err != nil {
		e.close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, noBuilder(e.name, err)
	}
	return e, nil
}

func open(ctx context.Context, address string) (*engine, error) {
	if address != "" {
		e := &engine{name: "BuildKit at " + address}
		var err error
		if e.client, err = client.New(ctx, address); err != nil {
			return nil, noBuilder(e.name, err)
		}
		return e, nil
	}
	d, err := docker.New(docker.FromEnv)
	if err != nil {
		return nil, noBuilder("the Docker engine", err)
	}
	e := &engine{docker: d, name: "the Docker engine at " + d.DaemonHost()}
	// Both are gRPC over a connection that began as an HTTP request for an upgrade.
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return d.DialHijack(ctx, "/grpc", "h2c", nil) }
	session := func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
		return d.DialHijack(ctx, "/session", proto, meta)
	}
	if e.client, err = client.New(ctx, "", client.WithContextDialer(dial), client.WithSessionDialer(session)); err != nil {
		_ = d.Close()
		return nil, noBuilder(e.name, err)
	}
	return e, nil
}
