package supervisor

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/sluice-dev/sluice/test/cluster/internal/node"
)

// serveRegistry serves images inside and puts the sandbox's there, without which no pod starts.
func serveRegistry(ctx context.Context, n node.Node) error {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", node.RegistryPort))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	blobs := filepath.Join(n.Data(), "registry")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	server := &http.Server{Handler: registry.New(
		registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)),
		registry.Logger(log.New(io.Discard, "", 0)),
	)}
	go func() { fmt.Printf("registry: %v\n", server.Serve(listener)) }()

	image, err := sandboxImage(n.Pause)
	if err != nil {
		return fmt.Errorf("make sandbox image: %w", err)
	}
	if err := crane.Push(image, n.SandboxImage(), crane.Insecure, crane.WithContext(ctx)); err != nil {
		return fmt.Errorf("push sandbox image: %w", err)
	}
	return nil
}

func sandboxImage(pause string) (v1.Image, error) {
	program, err := os.ReadFile(pause)
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "pause", Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	if _, err := w.Write(program); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(layer.Bytes())), nil
	})
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, fmt.Errorf("append layer: %w", err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, v1.Config{Entrypoint: []string{"/pause"}}
	return mutate.ConfigFile(image, file)
}
