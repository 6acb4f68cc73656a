package report_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

// ways in which a pull request loses what is reported on it, and what is said of it.
func ways(w *world, l *life) map[rollout.Reason]func() {
	return map[rollout.Reason]func(){
		rollout.ReasonUnknownVersion: func() {
			l.do("cli:ops", rollout.ReasonRequested, "", rollout.Delete{Version: treated})
			w.put(l)
		},
		rollout.ReasonUnknownEndpoint: func() { w.delete(fraud) },
		rollout.ReasonNotBound: func() {
			l.e.Spec.Repositories = []int64{5}
			w.put(l)
		},
	}
}

func (w *world) delete(key rollout.Key) {
	w.t.Helper()
	if err := w.store.Delete(w.t.Context(), key, ""); err != nil {
		w.t.Fatal(err)
	}
}

// told waits until it is on record that nothing is left to be told.
func (w *world) told(why rollout.Reason) {
	w.t.Helper()
	w.until("that it was told is on record", func() bool {
		all, err := w.journal.Entries(w.t.Context())
		return err == nil && len(all) == 1 && all[0].State == cluster.EntryDone && all[0].Reason == why
	})
}

func (w *world) writes() int {
	n := 0
	for _, c := range w.gh.Calls() {
		if c.Method != http.MethodGet && !strings.Contains(c.Path, "access_tokens") {
			n++
		}
	}
	return n
}

// TestWhatIsRemovedIsTold: a version that is gone leaves no comment that says that it runs, no buttons and no deployment,
// whether that happens before the reporter's eyes or while no process runs; and it is told once.
func TestWhatIsRemovedIsTold(t *testing.T) {
	t.Parallel()
	for _, app := range []bool{true, false} {
		for _, away := range []bool{true, false} {
			for why := range ways(nil, nil) {
				t.Run(fmt.Sprintf("app %v, process away %v, %s", app, away, why), func(t *testing.T) {
					t.Parallel()
					w := newWorld(t, app)
					w.start()
					l := newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonHeld, "", "undecided").do("github:alice", rollout.ReasonRequested, "", rollout.Hold{})
					w.put(l)
					first := w.shows(fraud, report.StateHeld, treated)
					w.settled()
					if away {
						w.stop()
					}
					ways(w, l)[why]()
					if away {
						w.start()
					}
					if c := w.shows(fraud, report.StateRemoved, treated); c.ID != first.ID || !strings.Contains(c.Body, string(why)) {
						t.Errorf("the comment %d became %d:\n%s", first.ID, c.ID, c.Body)
					}
					w.told(why)
					if app {
						want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed cancelled [] []"})
					} else {
						all := w.gh.Statuses(repoName)
						if last := all[len(all)-1]; last.State != "failure" || last.SHA != commit(2) {
							t.Errorf("the last status is %+v", last)
						}
					}
					want(t, "deployments", w.deployments(), []string{"models/fraud 0002 in_progress,inactive"})

					calls := len(w.gh.Calls())
					w.stop()
					w.start()
					time.Sleep(200 * time.Millisecond)
					if all := w.gh.Calls(); len(all) != calls {
						t.Errorf("the next start asks again: %v", all[calls:])
					}

					// It is back.
					role := rollout.Treatment
					switch why {
					case rollout.ReasonUnknownVersion:
						l.do("ci", rollout.ReasonRequested, "", rollout.Deploy{Version: version(treated, 2, pull)}).do("ci", rollout.ReasonRequested, "", rollout.Update{Version: treated, Type: &role})
					case rollout.ReasonNotBound:
						l.e.Spec.Repositories = []int64{repoID}
					}
					w.put(l)
					if c := w.shows(fraud, report.StateHeld, treated); c.ID != first.ID {
						t.Error("another comment was written")
					}
					w.settled()
					if all, err := w.journal.Entries(t.Context()); err != nil || all[0].Reason != "" {
						t.Errorf("what was told is still on record: %+v, %v", all, err)
					}
					if app {
						want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed action_required [promote rollback resume] []"})
					}
				})
			}
		}
	}
}

// TestOneOfSeveralVersionsIsRemoved: the newest is gone, and the comment is about the one before; or an older one is, whose
// check is its own.
func TestOneOfSeveralVersionsIsRemoved(t *testing.T) {
	t.Parallel()
	const newer = "pr-41-7777777"
	for _, gone := range []string{newer, treated} {
		for _, away := range []bool{true, false} {
			if away && gone == treated { // of which the comment says nothing
				continue
			}
			t.Run(fmt.Sprintf("%s, process away %v", gone, away), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, true)
				w.start()
				l := newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided")
				w.put(l)
				w.shows(fraud, report.StateRunning, treated)
				l.e.Spec.Versions = append(l.e.Spec.Versions, version(newer, 7, pull))
				l.e.Spec.Versions[len(l.e.Spec.Versions)-1].CreatedAt = began.Add(time.Hour)
				w.put(l)
				w.shows(fraud, report.StateJoined, newer)
				w.settled()
				before := w.gh.CheckRuns(repoName)
				if away {
					w.stop()
				}
				l.e.Spec.Versions = slices.DeleteFunc(l.e.Spec.Versions, func(v rollout.Version) bool { return v.Name == gone })
				if gone == treated {
					l.e.Spec.Versions[0].TrafficPercentile = 100 * rollout.OnePercent
				}
				w.put(l)
				if away {
					w.start()
				}
				w.until("its check is cancelled", func() bool {
					for _, c := range w.gh.CheckRuns(repoName) {
						if strings.HasSuffix(c.External, "/"+gone) {
							return c.Conclusion == "cancelled" && len(c.Actions) == 0
						}
					}
					return false
				})
				if gone == newer {
					w.shows(fraud, report.StateRunning, treated)
				}
				for i, c := range w.gh.CheckRuns(repoName) {
					if !strings.HasSuffix(c.External, "/"+gone) && (c.Conclusion != before[i].Conclusion || !slices.Equal(c.Actions, before[i].Actions)) {
						t.Errorf("another's check is %+v, and was %+v", c, before[i])
					}
				}
				want(t, "comments", len(w.gh.Comments(repoName, pull)), 1)
			})
		}
	}
}

// TestWhatIsOverStaysAsItWas: the end of a story is not told anew when its version goes. A promotion stays one, without the
// way back and the deployment.
func TestWhatIsOverStaysAsItWas(t *testing.T) {
	t.Parallel()
	for _, away := range []bool{true, false} {
		t.Run(fmt.Sprintf("process away %v", away), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, true)
			w.start()
			w.put(&life{t: t, e: lives(t)["worse"]})
			w.shows(fraud, report.StateWorse, treated)
			w.settled()
			if away {
				w.stop()
			}
			was := w.writes()
			w.delete(fraud)
			if away {
				w.start()
			}
			w.told(rollout.ReasonUnknownEndpoint)
			if n := w.writes() - was; n != 0 {
				t.Errorf("%d writing requests", n)
			}
			w.stop()

			w = newWorld(t, true)
			w.start()
			w.put(&life{t: t, e: lives(t)["promoted"]})
			w.shows(fraud, report.StatePromoted, treated)
			w.settled()
			if away {
				w.stop()
			}
			w.delete(fraud)
			if away {
				w.start()
			}
			w.shows(fraud, report.StateRemoved, treated)
			w.told(rollout.ReasonUnknownEndpoint)
			buttons := " []"
			if away { // a comment alone does not make a check pass: anybody who may write could have edited it
				buttons = " [rollback]"
			}
			want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed success" + buttons + " []"})
			want(t, "deployments", w.deployments(), []string{"models/fraud 0002 success,inactive"})
		})
	}
}

// hazy is a store that does not list an endpoint that it cannot read.
type hazy struct {
	cluster.Reader
	err error
}

func (h hazy) List(context.Context) ([]*rollout.Endpoint, error) { return nil, nil }

func (h hazy) Get(context.Context, rollout.Key) (*rollout.Endpoint, error) { return nil, h.err }

// TestWhatCannotBeReadIsNotRemoved: without the store nobody knows what is gone.
func TestWhatCannotBeReadIsNotRemoved(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(*world) cluster.Reader{
		"the store does not answer":       func(w *world) cluster.Reader { w.store.SetFailure(errors.New("away")); return w.store },
		"the endpoint is there unlisted":  func(w *world) cluster.Reader { return hazy{w.store, nil} },
		"the endpoint's file is no file":  func(w *world) cluster.Reader { return hazy{w.store, errors.New("not an endpoint")} },
		"the endpoint is gone, for proof": func(w *world) cluster.Reader { return hazy{w.store, fmt.Errorf("get: %w", cluster.ErrNotFound)} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, true)
			w.put(newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided"))
			w.start()
			w.shows(fraud, report.StateRunning, treated)
			w.settled()
			was := w.writes()
			if name == "the store does not answer" {
				away(w)
				w.r.Look(repoID, pull)
			} else {
				w.stop()
				w.c.Store = away(w)
				w.start()
			}
			if strings.HasSuffix(name, "for proof") {
				w.shows(fraud, report.StateRemoved, treated)
				return
			}
			time.Sleep(300 * time.Millisecond)
			if n := w.writes() - was; n != 0 {
				t.Errorf("%d writing requests", n)
			}
		})
	}
}

// TestMarksThatPeopleEdited end things where they say, and pass nothing.
func TestMarksThatPeopleEdited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	w.put(newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided"))
	w.start()
	c := w.shows(fraud, report.StateRunning, treated)
	w.settled()
	w.stop()
	w.gh.EditComment(repoName, c.ID, "mine\n"+report.Mark{Namespace: "models", Endpoint: "fraud", State: report.StatePromoted, Version: "evil", Commit: commit(6), Check: "build"}.String())
	w.delete(fraud)
	w.start()
	w.told(rollout.ReasonUnknownEndpoint)
	want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed neutral [promote rollback hold] []"})
	want(t, "deployments", w.deployments(), []string{"models/fraud 0002 in_progress"})
}

// TestRemovedWithoutAHome: the repository is gone as well; nothing is tried for ever.
func TestRemovedWithoutAHome(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	w.put(newLife(t, fraud).joined())
	w.start()
	w.shows(fraud, report.StateJoined, treated)
	w.settled()
	w.stop()
	w.gh.AddFault(githubtest.Fault{Path: "/repositories/", Status: 404})
	w.delete(fraud)
	was := w.gh.CountCalls(http.MethodGet, "/repositories/")
	w.start()
	w.until("it asks", func() bool { return w.gh.CountCalls(http.MethodGet, "/repositories/") > was })
	time.Sleep(1500 * time.Millisecond) // tries again within one question
	was = w.gh.CountCalls(http.MethodGet, "/repositories/")
	for range 50 {
		w.r.Look(repoID, pull)
		time.Sleep(20 * time.Millisecond)
	}
	if n := w.gh.CountCalls(http.MethodGet, "/repositories/") - was; n > 5 {
		t.Errorf("asked %d times more", n)
	}
}
