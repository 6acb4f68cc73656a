package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/test/cluster/internal/binaries"
	"github.com/sluice-dev/sluice/test/cluster/internal/cgroup"
	"github.com/sluice-dev/sluice/test/cluster/internal/node"
	"github.com/sluice-dev/sluice/test/cluster/internal/preflight"
	"github.com/sluice-dev/sluice/test/cluster/internal/supervisor"
)

// Names of the forwards that every cluster has, and their ports on the host if those are free.
const (
	forwardAPI      = "api"
	forwardRegistry = "registry"
	preferredAPI    = 6443
)

// marker is a file that says that a directory is a cluster's and may be removed.
const marker = ".sluice-test-cluster"

func newUp(o *options) *cobra.Command {
	var forwards, reaches []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster, or do nothing if it runs; returns when its node is ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := o.paths()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return up(ctx, p, forwards, reaches, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringArrayVar(&forwards, "forward", nil, "HOSTPORT:NODEPORT or HOSTPORT:ADDRESS:PORT, a port of the host's loopback that leads inside; HOSTPORT 0 takes a free one")
	cmd.Flags().StringArrayVar(&reaches, "reach", nil, "NODEPORT:HOSTPORT, a port of the node's address that leads to the host's loopback")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Minute, "give up after this time, the first compilation included")
	return cmd
}

func up(ctx context.Context, p paths, forwards, reaches []string, out io.Writer) (err error) {
	client := supervisor.NewClient(p.cluster)
	if _, err := client.Status(); err == nil {
		if len(forwards)+len(reaches) > 0 {
			return errors.New("start cluster: it is running already; use `cluster forward` to add to it")
		}
		fmt.Fprintln(out, "the cluster is running already")
		return report(client, p, out)
	}
	if err := preflight.Cluster(ctx, out); err != nil {
		return err
	}
	set, err := binaries.Build(ctx, p.module, p.cache, out)
	if err != nil {
		return fmt.Errorf("build programs: %w", err)
	}
	if err := linkKubectl(p, set); err != nil {
		return fmt.Errorf("link kubectl: %w", err)
	}
	began := time.Now()
	step := func(format string, args ...any) {
		fmt.Fprintf(out, "%5.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	if err := claim(ctx, p.cluster); err != nil {
		return err
	}
	n := node.Node{Dir: p.cluster, Kube: set.Kube, Pause: set.Pause}
	if n.CNI, err = preflight.CNI(); err != nil {
		return err
	}
	if n.ContainerdPath, err = exec.LookPath(node.Containerd); err != nil {
		return fmt.Errorf("find containerd: %w", err)
	}
	listeners, err := listen(forwards)
	if err != nil {
		return err
	}
	for _, l := range listeners {
		defer l.Socket.Close()
	}
	// The API server has one port, inside and on the host, so that one kubeconfig serves both.
	n.APIPort = listeners[0].Socket.Addr().(*net.TCPAddr).Port
	listeners[0].Target = fmt.Sprintf("127.0.0.1:%d", n.APIPort)
	if err := n.Write(); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	if err := cgroup.Make(n.Cgroup()); err != nil {
		return err
	}
	process, ended, err := supervisor.Start(n, listeners, "supervise")
	if err != nil {
		return err
	}
	ctx, abandon := context.WithCancelCause(ctx)
	defer abandon(nil)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ended
		abandon(errors.New("the supervisor ended"))
	}()
	defer func() {
		if err != nil {
			// The directory stays for its logs; the next up or down removes it.
			_ = process.Kill()
			<-stopped
			_ = cgroup.Remove(context.WithoutCancel(ctx), n.Cgroup())
			err = fmt.Errorf("%w\nits log ends with:\n%s\nall logs are in %s", err, tail(filepath.Join(n.Logs(), "supervisor.log")), n.Logs())
		}
	}()
	step("namespaces made")
	if err := await(ctx, n, client, step); err != nil {
		return err
	}
	for _, r := range reaches {
		l, err := reach(r)
		if err != nil {
			return err
		}
		if err := client.Forward(l); err != nil {
			return fmt.Errorf("reach host: %w", err)
		}
	}
	return report(client, p, out)
}

// claim takes the directory: an empty one, or one that a cluster left behind.
func claim(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read directory: %w", err)
	}
	if len(entries) > 0 {
		if err := remove(ctx, dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, marker), nil, 0o644); err != nil {
		return fmt.Errorf("mark directory: %w", err)
	}
	return nil
}

// listen opens the host's ends of what leads inside; the API server's is the first.
func listen(forwards []string) (all []supervisor.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Socket.Close()
			}
		}
	}()
	for _, one := range []struct {
		name string
		port int
	}{{forwardAPI, preferredAPI}, {forwardRegistry, node.RegistryPort}} {
		socket, err := listenPort(one.port)
		if err != nil {
			socket, err = listenPort(0)
		}
		if err != nil {
			return all, err
		}
		all = append(all, supervisor.Listener{Socket: socket, Forward: supervisor.Forward{
			Name: one.name, Host: socket.Addr().String(), Target: fmt.Sprintf("127.0.0.1:%d", node.RegistryPort),
		}})
	}
	for _, f := range forwards {
		l, err := inward(f)
		if err != nil {
			return all, err
		}
		all = append(all, l)
	}
	return all, nil
}

// inward opens the host's end of HOSTPORT:NODEPORT or HOSTPORT:ADDRESS:PORT.
func inward(text string) (supervisor.Listener, error) {
	host, target, _ := strings.Cut(text, ":")
	port, err := parsePort(host, 0)
	if err != nil {
		return supervisor.Listener{}, fmt.Errorf("read forward %q: %w", text, err)
	}
	address, insidePort, ok := strings.Cut(target, ":")
	if !ok {
		address, insidePort = node.Address, target
	}
	inside, err := parsePort(insidePort, 1)
	if err != nil {
		return supervisor.Listener{}, fmt.Errorf("read forward %q: %w", text, err)
	}
	if net.ParseIP(address) == nil {
		return supervisor.Listener{}, fmt.Errorf("read forward %q: %q is no IP address", text, address)
	}
	socket, err := listenPort(port)
	if err != nil {
		return supervisor.Listener{}, err
	}
	return supervisor.Listener{Socket: socket, Forward: supervisor.Forward{
		Host: socket.Addr().String(), Target: net.JoinHostPort(address, strconv.Itoa(inside)),
	}}, nil
}

// reach reads NODEPORT:HOSTPORT; it is the supervisor that listens.
func reach(text string) (supervisor.Listener, error) {
	inside, host, _ := strings.Cut(text, ":")
	from, err := parsePort(inside, 1)
	if err != nil {
		return supervisor.Listener{}, fmt.Errorf("read reach %q: %w", text, err)
	}
	to, err := parsePort(host, 1)
	if err != nil {
		return supervisor.Listener{}, fmt.Errorf("read reach %q: %w", text, err)
	}
	return supervisor.Listener{Forward: supervisor.Forward{
		Host: net.JoinHostPort(node.Address, strconv.Itoa(from)), Target: fmt.Sprintf("127.0.0.1:%d", to), Outward: true,
	}}, nil
}

func parsePort(text string, least int) (int, error) {
	port, err := strconv.Atoi(text)
	if err != nil || port < least || port > 65535 {
		return 0, fmt.Errorf("%q is no port", text)
	}
	return port, nil
}

func listenPort(port int) (*net.TCPListener, error) {
	socket, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return nil, fmt.Errorf("listen on host: %w", err)
	}
	return socket, nil
}

// await waits for the components and then for the node, and tells each that is there.
func await(ctx context.Context, n node.Node, client supervisor.Client, step func(string, ...any)) error {
	api, err := newAPI(n)
	if err != nil {
		return err
	}
	told := map[string]bool{}
	nodeReady := false
	for {
		status, err := client.Status()
		if err != nil && !errors.Is(err, supervisor.ErrNotRunning) {
			return fmt.Errorf("ask supervisor: %w", err)
		}
		var waiting []string
		for _, c := range status.Components {
			if c.Ready && !told[c.Name] {
				told[c.Name] = true
				step("%s is ready", c.Name)
			}
			if !c.Ready {
				waiting = append(waiting, c.Name)
			}
		}
		if told[node.APIServer] && !nodeReady {
			if nodeReady = api.nodeReady(ctx); nodeReady {
				step("node %s is ready", node.Name)
			}
		}
		if len(told) > 0 && len(waiting) == 0 && nodeReady {
			return nil
		}
		select {
		case <-ctx.Done():
			if !nodeReady {
				waiting = append(waiting, "the node")
			}
			return fmt.Errorf("wait for %s: %w", strings.Join(waiting, ", "), context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// api asks the API server what it takes to know that the cluster is up.
type api struct {
	client *http.Client
	url    string
}

func newAPI(n node.Node) (*api, error) {
	ca, err := os.ReadFile(n.CA())
	if err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	cert, err := n.AdminCertificate()
	if err != nil {
		return nil, err
	}
	return &api{
		url: n.APIServerURL(),
		client: &http.Client{
			Timeout:   5 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}},
		},
	}, nil
}

func (a *api) nodeReady(ctx context.Context) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+"/api/v1/nodes/"+node.Name, nil)
	if err != nil {
		return false
	}
	response, err := a.client.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	var is struct {
		Spec struct {
			Taints []struct{ Key string }
		}
		Status struct {
			Conditions []struct{ Type, Status string }
		}
	}
	if json.NewDecoder(response.Body).Decode(&is) != nil {
		return false
	}
	// The taint that a new node has outlives its unreadiness a little, and keeps pods off it.
	if len(is.Spec.Taints) > 0 {
		return false
	}
	for _, c := range is.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// linkKubectl puts kubectl where the repository's other tools are.
func linkKubectl(p paths, set binaries.Set) error {
	bin := filepath.Join(p.cache, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	target, err := filepath.Rel(bin, set.Kube)
	if err != nil {
		return err
	}
	link := filepath.Join(bin, "kubectl")
	if is, err := os.Readlink(link); err == nil && is == target {
		return nil
	}
	// Renamed into place, since another may be using it.
	part := fmt.Sprintf("%s.%d", link, os.Getpid())
	if err := os.Symlink(target, part); err != nil {
		return err
	}
	return os.Rename(part, link)
}

// report says where things are.
func report(client supervisor.Client, p paths, out io.Writer) error {
	status, err := client.Status()
	if err != nil {
		return fmt.Errorf("ask supervisor: %w", err)
	}
	for _, f := range status.Forwards {
		switch {
		case f.Name != "":
			fmt.Fprintf(out, "%s: %s\n", f.Name, f.Host)
		case f.Outward:
			fmt.Fprintf(out, "reach: %s inside leads to the host's %s\n", f.Host, f.Target)
		default:
			fmt.Fprintf(out, "forward: %s leads to %s inside\n", f.Host, f.Target)
		}
	}
	fmt.Fprintf(out, "kubeconfig: %s\n", node.Node{Dir: p.cluster}.Kubeconfig())
	return nil
}

// tail is the end of a log, for an error message.
func tail(path string) string {
	body, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
