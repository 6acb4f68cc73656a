package telemetry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// The paths on a router's admin port.
const (
	ReportPath = "/sluice/v1/report"
	QueryPath  = "/sluice/v1/query"
)

const (
	// clientTimeout bounds one call: an answer that comes later than a few of the
	// reader's periods is no use.
	clientTimeout = 2 * time.Second
	// maxReport bounds an answer: 500 endpoints of six versions take about 2 MiB.
	maxReport = 64 << 20
)

// ReportHandler serves a reporter's report at ReportPath.
func ReportHandler(r Reporter) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		report, err := r.Report(q.Context())
		respond(w, report, err, http.StatusInternalServerError)
	})
}

// QueryHandler serves a source at QueryPath; the parameters are namespace, endpoint,
// version and window (as time.ParseDuration reads it).
func QueryHandler(s Source) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		args := q.URL.Query()
		window, err := time.ParseDuration(args.Get("window"))
		if err != nil {
			respond(w, nil, fmt.Errorf("parse window: %w", err), http.StatusBadRequest)
			return
		}
		key := rollout.Key{Namespace: args.Get("namespace"), Name: args.Get("endpoint")}
		samples, err := s.Query(q.Context(), key, args.Get("version"), window)
		respond(w, samples, err, http.StatusBadRequest)
	})
}

func respond(w http.ResponseWriter, value any, err error, failed int) {
	status := http.StatusOK
	if err != nil {
		status, value = failed, map[string]string{"error": err.Error()}
	}
	b, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// HTTPReporter reads the report of a router from its admin port.
type HTTPReporter struct{ get getter }

// NewHTTPReporter for the admin port at a base URL such as http://127.0.0.1:9090.
func NewHTTPReporter(base string) *HTTPReporter { return &HTTPReporter{newGetter(base)} }

// Report fails when the router does not answer within seconds.
func (r *HTTPReporter) Report(ctx context.Context) (Report, error) {
	var out Report
	if err := r.get.json(ctx, ReportPath, nil, &out); err != nil {
		return Report{}, fmt.Errorf("read report: %w", err)
	}
	if out.Epoch == "" {
		return Report{}, fmt.Errorf("read report of %s: it has no epoch", r.get.base)
	}
	return out, nil
}

// HTTPSource asks a router's metric source through its admin port.
type HTTPSource struct{ get getter }

// NewHTTPSource for the admin port at a base URL such as http://127.0.0.1:9090.
func NewHTTPSource(base string) *HTTPSource { return &HTTPSource{newGetter(base)} }

// Query fails when the router does not answer within seconds.
func (s *HTTPSource) Query(ctx context.Context, endpoint rollout.Key, version string, window time.Duration) (map[string]Sample, error) {
	args := url.Values{
		"namespace": {endpoint.Namespace}, "endpoint": {endpoint.Name},
		"version": {version}, "window": {window.String()},
	}
	var out map[string]Sample
	if err := s.get.json(ctx, QueryPath, args, &out); err != nil {
		return nil, fmt.Errorf("query metrics of %s/%s: %w", endpoint, version, err)
	}
	return out, nil
}

type getter struct {
	base   string
	client *http.Client
}

func newGetter(base string) getter {
	return getter{
		base: strings.TrimSuffix(base, "/"),
		client: &http.Client{
			Timeout: clientTimeout,
			// No proxies: the admin port is never behind one.
			Transport: &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, ResponseHeaderTimeout: clientTimeout},
		},
	}
}

func (g getter) json(ctx context.Context, path string, args url.Values, out any) error {
	target := g.base + path
	if len(args) > 0 {
		target += "?" + args.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body := io.LimitReader(resp.Body, maxReport)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(body, 512))
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	// The rest of the body is read so that the connection is used again.
	_, err = io.Copy(io.Discard, body)
	return err
}
