package kube

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/sluice-dev/sluice/pkg/cluster"
)

// maxLine bounds a line of a log, in bytes; what is longer is cut into several.
const maxLine = 64 << 10

// Logs implements cluster.LogReader: what the pods' containers wrote, for as long as
// Kubernetes keeps it, which is as long as the pod.
func (f *Fleets) Logs(ctx context.Context, key cluster.FleetKey, o cluster.LogOptions) (io.ReadCloser, error) {
	if err := cluster.ValidateFleetKey(key); err != nil {
		return nil, fmt.Errorf("read logs of %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	pods, err := corev1client.NewForConfig(f.c.config)
	if err != nil {
		return nil, fmt.Errorf("read logs of %s: %w", key, err)
	}
	state, there, err := f.fleet(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("read logs of %s: %w", key, err)
	}
	if !there {
		return nil, fmt.Errorf("read logs of %s: %w", key, cluster.ErrNotFound)
	}
	ctx, stop := context.WithCancel(ctx)
	out, in := io.Pipe()
	l := &logs{pods: pods.Pods(key.Endpoint.Namespace), options: o, out: in, begun: map[string]bool{}, until: map[string]time.Time{}}
	changes, err := f.WatchFleets(ctx)
	if err != nil {
		stop()
		return nil, fmt.Errorf("read logs of %s: %w", key, err)
	}
	go func() {
		defer stop()
		l.begin(ctx, state.Replicas)
		for o.Follow {
			if _, open := <-changes; !open {
				break
			}
			if now, there, err := f.fleet(ctx, key); err == nil && there {
				l.begin(ctx, now.Replicas)
			}
		}
		l.wg.Wait()
		_ = in.CloseWithError(l.failed())
	}()
	return &logReader{out, stop}, nil
}

func (f *Fleets) fleet(ctx context.Context, key cluster.FleetKey) (cluster.FleetState, bool, error) {
	all, err := f.Fleets(ctx)
	if err != nil {
		return cluster.FleetState{}, false, err
	}
	i := slices.IndexFunc(all, func(s cluster.FleetState) bool { return s.Key == key })
	if i < 0 {
		return cluster.FleetState{}, false, nil
	}
	return all[i], true, nil
}

type logReader struct {
	*io.PipeReader
	stop context.CancelFunc
}

func (r *logReader) Close() error {
	r.stop()
	return r.PipeReader.Close()
}

type logs struct {
	pods    corev1client.PodInterface
	options cluster.LogOptions
	wg      sync.WaitGroup
	begun   map[string]bool

	mu   sync.Mutex
	out  *io.PipeWriter
	errs []error
	// until when a replica's lines were read, by container after container.
	until map[string]time.Time
}

// begin to read the replicas that are new. One without a container yet is tried again on
// the next change.
func (l *logs) begin(ctx context.Context, replicas []cluster.Replica) {
	for _, r := range replicas {
		l.mu.Lock()
		known := l.begun[r.Name]
		l.begun[r.Name] = true
		l.mu.Unlock()
		if known {
			continue
		}
		l.wg.Go(func() {
			err := l.read(ctx, r.Name)
			l.mu.Lock()
			defer l.mu.Unlock()
			switch {
			case l.options.Follow:
				// Not there yet, or its container has ended: the next one's is read when the replica changes.
				delete(l.begun, r.Name)
				if err == nil {
					l.until[r.Name] = time.Now()
				}
			case err != nil && ctx.Err() == nil:
				l.errs = append(l.errs, err)
			}
		})
	}
}

func (l *logs) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}

func (l *logs) read(ctx context.Context, pod string) error {
	o := &corev1.PodLogOptions{Container: containerModel, Follow: l.options.Follow}
	l.mu.Lock()
	until := l.until[pod]
	l.mu.Unlock()
	if !until.IsZero() {
		since := metav1.NewTime(until)
		o.SinceTime = &since
	} else if l.options.Tail > 0 {
		n := int64(l.options.Tail)
		o.TailLines = &n
	}
	s, err := l.pods.GetLogs(pod, o).Stream(ctx)
	if err != nil {
		if strings.Contains(err.Error(), "waiting to start") || strings.Contains(err.Error(), "ContainerCreating") {
			if !l.options.Follow {
				return nil // it has written nothing yet
			}
		}
		return fmt.Errorf("read log of pod %s: %w", pod, err)
	}
	defer func() { _ = s.Close() }()
	in := bufio.NewReaderSize(s, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			l.mu.Lock()
			_, failed := fmt.Fprintf(l.out, "%s %s\n", pod, strings.TrimRight(string(line), "\r\n"))
			l.mu.Unlock()
			if failed != nil {
				return nil // nobody reads any more
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read log of pod %s: %w", pod, err)
		}
	}
}
