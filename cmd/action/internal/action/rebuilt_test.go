package action

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sethvargo/go-githubactions"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image/build"
	"github.com/sluice-dev/sluice/rollout"
)

// fakeBuilder stands for BuildKit: it pushes some image with the labels that it is asked for.
type fakeBuilder struct{ t *testing.T }

func (b fakeBuilder) Build(ctx context.Context, r build.Request) (v1.Hash, error) {
	img, err := random.Image(500, 1)
	if err == nil {
		c := withPlatform(img)
		c.Config.Labels = r.Labels
		img, err = mutate.ConfigFile(img, c)
	}
	if err != nil {
		return v1.Hash{}, err
	}
	if err := remote.Write(r.Target, img, remote.WithContext(ctx)); err != nil {
		return v1.Hash{}, err
	}
	return img.Digest()
}

// The summary says what has changed in the environment since the control, and nothing if it was found.
func TestWhyItWasBuilt(t *testing.T) {
	w := newWorld(t)
	w.write("sluice.yaml", manifest+"environment: {requirements: requirements.txt}\n", "requirements.txt", "numpy==1.26\n")
	var log bytes.Buffer
	in, err := parse([]string{"--registry", w.registry + "/models", "--base-image", w.registry + "/lib/python:3.12", "--platform", "linux/" + runtime.GOARCH}, []string{"HOME=" + t.TempDir()}, &log)
	if err != nil {
		t.Fatal(err)
	}
	ship := func() (*run, deploy.Shipment) {
		t.Helper()
		r := &run{in: in, dir: w.workspace, r: &report{gh: githubactions.New(githubactions.WithWriter(&log)), out: &log, outputs: map[string]string{}}}
		s, err := r.shipper()
		if err != nil {
			t.Fatal(err)
		}
		s.Builder = fakeBuilder{t}
		out, err := s.Ship(t.Context(), w.workspace)
		if err != nil {
			t.Fatal(err)
		}
		return r, out
	}
	_, first := ship()
	if first.Environment.Source != deploy.EnvironmentBuilt {
		t.Fatalf("the environment came from %q", first.Environment.Source)
	}
	before := &rollout.Endpoint{Spec: rollout.Spec{Versions: []rollout.Version{{Name: "sha-aaaaaaa", Type: rollout.Control, Image: first.Image}}}}
	w.write("requirements.txt", "numpy==2.0\nscipy==1.14\n")
	r, second := ship()
	why := strings.Join(r.whyBuilt(t.Context(), before, second), "; ")
	if !strings.Contains(why, "since sha-aaaaaaa: ") || !strings.Contains(why, "numpy==1.26 → numpy==2.0") || !strings.Contains(why, "added scipy==1.14") {
		t.Errorf("it says %q", why)
	}
	r.image(second)
	r.summary.why = r.whyBuilt(t.Context(), before, second)
	for _, want := range []string{"built |", "numpy==1.26 → numpy==2.0"} {
		if !strings.Contains(r.summary.markdown(), want) {
			t.Errorf("the summary has no %q:\n%s", want, r.summary.markdown())
		}
	}
	if _, third := ship(); third.Environment.Source != deploy.EnvironmentWorkspace {
		t.Errorf("then the environment came from %q", third.Environment.Source)
	}
	// An image that is gone, or says nothing, is no reason to fail.
	repo, err := name.NewRepository(w.registry + "/models/fraud")
	if err != nil {
		t.Fatal(err)
	}
	before.Spec.Versions[0].Image = repo.Digest("sha256:" + strings.Repeat("0", 64)).Name()
	if why := fmt.Sprint(r.whyBuilt(t.Context(), before, second)); !strings.Contains(why, "cannot be read") {
		t.Errorf("it says %q", why)
	}
}
