package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

func (a *app) statusCmd() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "status [ENDPOINT [VERSION]]",
		Short: "Show endpoints, their versions, shares and evidence",
		Args:  cobra.MaximumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.status(c.Context(), args, watch)
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show it again with every change")
	return c
}

func (a *app) status(ctx context.Context, args []string, watch bool) error {
	sys, err := a.open(ctx)
	if err != nil {
		return err
	}
	if !watch {
		return a.statusOnce(ctx, sys, args)
	}
	changes, err := sys.Store.Watch(ctx)
	if err != nil {
		return err
	}
	for {
		if a.output == "table" {
			_, _ = fmt.Fprint(a.io.Out, "\x1b[2J\x1b[H")
		}
		if err := a.statusOnce(ctx, sys, args); err != nil {
			return err
		}
		if _, open := <-changes; !open {
			return nil
		}
	}
}

func (a *app) statusOnce(ctx context.Context, sys *system, args []string) error {
	if len(args) == 0 {
		all, err := sys.Store.List(ctx)
		if err != nil {
			return err
		}
		if sys.Problems != nil {
			for key, problem := range sys.Problems() {
				_, _ = fmt.Fprintf(a.io.Err, "warning: %s: %v\n", key, problem)
			}
		}
		mine := []*rollout.Endpoint{}
		for _, e := range all {
			if e.Metadata.Namespace == a.namespace {
				mine = append(mine, e)
			}
		}
		return a.print(mine, func(w io.Writer) {
			if len(mine) == 0 {
				_, _ = fmt.Fprintf(w, "namespace %s has no endpoints: make one with `sluice deploy DIR`\n", a.namespace)
				return
			}
			now := time.Now()
			t := table{}
			t.add("ENDPOINT", "VERSIONS", "CONTROL", "TREATMENT", "SHARE", "READY", "STATE", "AGE")
			for _, e := range mine {
				t.add(summary(e, now)...)
			}
			t.write(w)
		})
	}
	e, err := getEndpoint(ctx, sys.Store, a.key(args[0]))
	if err != nil {
		return err
	}
	if len(args) == 2 {
		v := e.Spec.Version(args[1])
		if v == nil {
			return rollout.UnknownVersion(&e.Spec, args[1])
		}
		st := e.Status.Version(v.Name)
		return a.print(struct {
			Spec   *rollout.Version      `json:"spec"`
			Status rollout.VersionStatus `json:"status"`
		}{v, st}, func(w io.Writer) { writeVersion(w, e, v) })
	}
	return a.print(e, func(w io.Writer) { writeEndpoint(w, e, time.Now()) })
}

func getEndpoint(ctx context.Context, store cluster.Reader, key rollout.Key) (*rollout.Endpoint, error) {
	e, err := store.Get(ctx, key)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, cluster.UnknownEndpoint(key)
	}
	return e, err
}

func summary(e *rollout.Endpoint, now time.Time) []string {
	control, treatment, share := "-", "-", "-"
	if v := e.Spec.ByRole(rollout.Control); v != nil {
		control = v.Name
	}
	if v := e.Spec.ByRole(rollout.Treatment); v != nil {
		treatment, share = v.Name, e.Spec.Effective(v.Name).String()+"%"
	}
	ready, state := 0, "serving"
	for _, s := range e.Status.Versions {
		ready += s.ReadyReplicas
	}
	switch {
	case e.Spec.Lock != nil:
		state = "locked"
	case e.Spec.Hold != nil:
		state = "held"
	case ready == 0:
		state = "not ready"
	}
	return []string{e.Metadata.Name, strconv.Itoa(len(e.Spec.Versions)), control, treatment, share, strconv.Itoa(ready), state, ago(e.Metadata.CreationTimestamp, now)}
}

func writeEndpoint(w io.Writer, e *rollout.Endpoint, now time.Time) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	p("%s  %s", e.Key(), e.Status.ScoringURI)
	if l := e.Spec.Lock; l != nil {
		p("LOCKED by %s: %s", l.Actor, cmp.Or(l.Reason, "no reason given"))
	}
	if h := e.Spec.Hold; h != nil {
		p("HELD by %s: %s", h.Actor, cmp.Or(h.Reason, "no reason given"))
	}
	shares := map[string]rollout.Percent{}
	for _, s := range e.Spec.Shares() {
		shares[s.Name] = s.Percent
	}
	if e.Status.ObservedGeneration == e.Metadata.Generation {
		for _, s := range e.Status.Versions {
			shares[s.Name] = s.EffectivePercent // as applied, fallbacks included
		}
	}
	t := table{}
	t.add("VERSION", "TYPE", "CLAIM", "GETS", "", "READY", "STATE", "AGE", "NOTE")
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		st := e.Status.Version(v.Name)
		note := string(st.Reason)
		if e.Spec.Default() == v {
			note = strings.TrimSpace("default " + note)
		}
		if st.PlannedPercent > shares[v.Name] {
			note = strings.TrimSpace(fmt.Sprintf("%s prepares for %s%%", note, st.PlannedPercent))
		}
		t.add(v.Name, cmp.Or(string(v.Type), "-"), v.TrafficPercentile.String()+"%", shares[v.Name].String()+"%", bar(shares[v.Name], 20),
			fmt.Sprintf("%d/%d", st.ReadyReplicas, st.Replicas), cmp.Or(string(st.State), "-"), ago(v.CreatedAt, now), note)
	}
	t.write(w)
	for _, c := range e.Status.Conditions {
		if (c.Type == "Ready") != (c.Status == "True") {
			p("%s: %s", c.Reason, c.Message)
		}
	}
	if r := e.Status.Rollout; r != nil {
		if r.Treatment != "" {
			p("rollout of %s, step %d: %s %s", r.Treatment, r.Step+1, r.Reason, r.Message)
		}
		for _, ev := range r.Evidence {
			p("evidence on %s: %s; %s of %s requests bad, control %s of %s; bad rate at most %s %%", ev.Treatment, ev.Verdict, ev.Bad, ev.Requests, ev.ControlBad, ev.ControlRequests, ev.BadUpperBound)
		}
	}
	if n := len(e.Spec.Changes); n > 0 {
		p("")
		h := table{}
		h.add("WHEN", "WHO", "WHAT", "WHY")
		for _, c := range e.Spec.Changes[max(0, n-5):] {
			h.add(ago(c.At, now)+" ago", c.Actor, c.Action, short(strings.TrimSpace(string(c.Reason)+" "+c.Evidence), 70))
		}
		h.write(w)
	}
}

// short cuts a text for a table; -o json has all of it.
func short(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

func writeVersion(w io.Writer, e *rollout.Endpoint, v *rollout.Version) {
	st := e.Status.Version(v.Name)
	t := table{}
	t.add("endpoint", e.Key().String())
	t.add("version", v.Name)
	t.add("type", cmp.Or(string(v.Type), "-"))
	t.add("default", strconv.FormatBool(e.Spec.Default() == v))
	t.add("claim", v.TrafficPercentile.String()+"%")
	t.add("gets", e.Spec.Effective(v.Name).String()+"%")
	t.add("image", v.Image)
	t.add("commit", cmp.Or(v.Source.Commit, "-"))
	t.add("state", cmp.Or(string(st.State), "-"))
	t.add("ready", fmt.Sprintf("%d of %d replicas", st.ReadyReplicas, st.Replicas))
	if st.Reason != "" {
		t.add("reason", string(st.Reason))
	}
	t.write(w)
	if st.Message != "" {
		_, _ = fmt.Fprintln(w, st.Message)
	}
}
