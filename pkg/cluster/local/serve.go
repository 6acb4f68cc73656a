package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	// heartbeat is how often a quiet stream of snapshots says that it lives.
	heartbeat = 5 * time.Second
	// maxSocketPath is the shortest limit of a socket's path: 104 bytes with the final zero on macOS, 108 on Linux.
	maxSocketPath = 103
	// maxFleetBody bounds a request's body; specs are small.
	maxFleetBody = 4 << 20
)

// FleetSocket is where the supervisor of a state directory serves its Host.
func FleetSocket(dir string) string { return filepath.Join(dir, "run", "fleet.sock") }

// ListenFleet opens that socket, for this user only. Only the holder of Lock may: it
// replaces a socket that a supervisor before it left.
func ListenFleet(dir string) (net.Listener, error) {
	path := FleetSocket(dir)
	if len(path) > maxSocketPath {
		return nil, &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "state", Message: fmt.Sprintf("the state directory's path is too long for a socket in it: %s has %d bytes, more than %d", path, len(path), maxSocketPath),
			Hint: "choose a shorter one",
		}
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("listen on fleet socket: %w", err)
	}
	// The directory was perhaps there before, with another mode; it is what keeps others out
	// in the moment between bind and chmod.
	if err := os.Chmod(filepath.Dir(path), dirMode); err != nil {
		return nil, fmt.Errorf("listen on fleet socket: %w", err)
	}
	if err := remove(path); err != nil {
		return nil, fmt.Errorf("listen on fleet socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on fleet socket: %w", err)
	}
	if err := os.Chmod(path, fileMode); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on fleet socket: %w", err), ln.Close())
	}
	return ln, nil
}

// snapshot is one line of the stream: all fleets as they are.
type snapshot struct {
	// Run is the host's; Seq grows with each change in it.
	Run    string               `json:"run"`
	Seq    uint64               `json:"seq"`
	Fleets []cluster.FleetState `json:"fleets"`
}

// applied answers a change: a snapshot with that Seq or a later one shows it.
type applied struct {
	Run string `json:"run"`
	Seq uint64 `json:"seq"`
}

// failure is an error on the wire.
type failure struct {
	Message  string           `json:"message"`
	NotFound bool             `json:"notFound,omitempty"`
	Refusals []*rollout.Error `json:"refusals,omitempty"`
}

type scaleRequest struct {
	Replicas int `json:"replicas"`
}

// Serve lets other processes use the host (see Dial) until ctx ends, and closes ln.
func Serve(ctx context.Context, ln net.Listener, h *Host) error {
	s := &fleetServer{host: h}
	r := mux.NewRouter()
	const fleet = "/v1/fleets/{namespace}/{endpoint}/{version}"
	r.HandleFunc("/v1/snapshots", s.snapshots).Methods(http.MethodGet)
	r.HandleFunc(fleet, s.apply).Methods(http.MethodPut)
	r.HandleFunc(fleet, s.delete).Methods(http.MethodDelete)
	r.HandleFunc(fleet+"/scale", s.scale).Methods(http.MethodPut)
	r.HandleFunc(fleet+"/logs", s.logs).Methods(http.MethodGet)
	server := &http.Server{
		Handler: r, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ln); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve fleets: %w", err)
	}
	return nil
}

type fleetServer struct{ host *Host }

func fleetKey(r *http.Request) cluster.FleetKey {
	v := mux.Vars(r)
	return cluster.FleetKey{Endpoint: rollout.Key{Namespace: v["namespace"], Name: v["endpoint"]}, Version: v["version"]}
}

func (s *fleetServer) apply(w http.ResponseWriter, r *http.Request) {
	var spec cluster.FleetSpec
	err := readJSON(w, r, &spec)
	if err == nil {
		spec.Key = fleetKey(r)
		err = s.host.Apply(r.Context(), spec)
	}
	s.answer(w, err)
}

func (s *fleetServer) delete(w http.ResponseWriter, r *http.Request) {
	s.answer(w, s.host.Delete(r.Context(), fleetKey(r)))
}

func (s *fleetServer) scale(w http.ResponseWriter, r *http.Request) {
	var q scaleRequest
	err := readJSON(w, r, &q)
	if err == nil {
		err = s.host.Scale(r.Context(), fleetKey(r), q.Replicas)
	}
	s.answer(w, err)
}

func readJSON(w http.ResponseWriter, r *http.Request, to any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxFleetBody))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return &rollout.Error{Reason: rollout.ReasonInvalid, Message: "the request is not understood: " + err.Error(), Hint: "use one version of sluice for all processes"}
	}
	return nil
}

func (s *fleetServer) answer(w http.ResponseWriter, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	s.host.mu.Lock()
	seq := s.host.seq
	s.host.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(applied{Run: s.host.run, Seq: seq})
}

func fail(w http.ResponseWriter, err error) {
	f := failure{Message: err.Error(), NotFound: errors.Is(err, cluster.ErrNotFound), Refusals: rollout.AsErrors(err)}
	code := http.StatusInternalServerError
	switch {
	case f.NotFound:
		code = http.StatusNotFound
	case len(f.Refusals) > 0:
		code = http.StatusUnprocessableEntity
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(f)
}

// snapshots streams the state, one line of JSON at once and after every change; what
// changes while a line is being written is in the next. Empty lines say that it lives.
func (s *fleetServer) snapshots(w http.ResponseWriter, r *http.Request) {
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	changes := s.host.bell.Listen(r.Context())
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	enc := json.NewEncoder(w)
	sent, first := uint64(0), true
	for {
		select {
		case _, open := <-changes:
			if !open {
				return
			}
			seq, fleets := s.host.snapshot()
			if seq == sent && !first {
				continue
			}
			sent, first = seq, false
			if enc.Encode(snapshot{Run: s.host.run, Seq: seq, Fleets: fleets}) != nil {
				return
			}
		case <-beat.C:
			if _, err := w.Write([]byte("\n")); err != nil {
				return
			}
		}
		if out.Flush() != nil {
			return
		}
	}
}

func (s *fleetServer) logs(w http.ResponseWriter, r *http.Request) {
	tail, _ := strconv.Atoi(r.URL.Query().Get("tail"))
	logs, err := s.host.Logs(r.Context(), fleetKey(r), cluster.LogOptions{Follow: r.URL.Query().Get("follow") == "true", Tail: tail})
	if err != nil {
		fail(w, err)
		return
	}
	defer func() { _ = logs.Close() }()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := http.NewResponseController(w)
	_ = out.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := logs.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			if out.Flush() != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				panic(http.ErrAbortHandler) // cuts the answer, so that the reader does not take it for all
			}
			return
		}
	}
}
