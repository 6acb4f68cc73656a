package build

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/client"
	docker "github.com/moby/moby/client"
)

const (
	// noExporter is how a Docker engine without the containerd image store answers, whose BuildKit can only put an
	// image into the engine's own store (moby's builder-next/worker).
	noExporter = `exporter "image" could not be found`
	// exporterMoby is that one.
	exporterMoby = "moby"
)

// solveInStore builds into a Docker engine's own store, pushes from there and removes the tag again. The push is
// the engine's: it has the layers, mounts what it knows the registry to have and writes the tag last.
func (e *engine) solveInStore(ctx context.Context, r Request, opt client.SolveOpt, j *journal, keys authn.Keychain) (_ v1.Hash, err error) {
	if len(opt.CacheExports) > 0 {
		j.progress("%s cannot write a registry cache; it keeps its own", e.name)
		opt.CacheExports = nil
	}
	opt.Exports = []client.ExportEntry{{Type: exporterMoby, Attrs: map[string]string{"name": r.Target.Name()}}}
	if _, err := e.once(ctx, opt, j); err != nil {
		return v1.Hash{}, err
	}
	defer func() {
		// Also after an interruption.
		untag := e.untag(context.WithoutCancel(ctx), r.Target)
		if err == nil && untag != nil {
			j.progress("%s keeps the tag %s: %v", e.name, r.Target.Name(), untag)
		}
	}()
	return e.push(ctx, r.Target, j, keys)
}

func (e *engine) untag(ctx context.Context, tag name.Tag) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	// Its layers stay for the next build.
	_, err := e.docker.ImageRemove(ctx, tag.Name(), docker.ImageRemoveOptions{PruneChildren: false})
	return err
}

// pushed is a line of the engine's answer to a push.
type pushed struct {
	Status, ID string
	Error      string
	Aux        struct{ Tag, Digest string }
}

func (e *engine) push(ctx context.Context, tag name.Tag, j *journal, keys authn.Keychain) (v1.Hash, error) {
	has, err := resolve(keys, tag.RegistryStr())
	if err != nil {
		return v1.Hash{}, err
	}
	auth, err := json.Marshal(has)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("encode credentials: %w", err)
	}
	s := j.begin(stepExport + ": push " + tag.Name())
	response, err := e.docker.ImagePush(ctx, tag.Name(), docker.ImagePushOptions{RegistryAuth: base64.URLEncoding.EncodeToString(auth)})
	if err != nil {
		err = fmt.Errorf("failed to push %s: %w", tag.Name(), err)
		j.end(s, err)
		return v1.Hash{}, err
	}
	defer func() { _ = response.Close() }()
	digest, err := j.pushed(s, response, tag)
	j.end(s, err)
	return digest, err
}

// pushed reads an engine's answer to a push.
func (j *journal) pushed(s *step, answer io.Reader, tag name.Tag) (v1.Hash, error) {
	lines := json.NewDecoder(answer)
	var digest string
	for {
		var line pushed
		err := lines.Decode(&line)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return v1.Hash{}, fmt.Errorf("failed to push %s: read answer: %w", tag.Name(), err)
		}
		switch {
		case line.Error != "":
			return v1.Hash{}, fmt.Errorf("failed to push %s: %s", tag.Name(), line.Error)
		case line.Aux.Digest != "":
			digest = line.Aux.Digest
		case line.Status != "Pushing" && line.Status != "":
			j.write(s.number, line.ID+" "+line.Status)
		}
	}
	hash, err := v1.NewHash(digest)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("failed to push %s: the engine does not tell its digest: %w", tag.Name(), err)
	}
	return hash, nil
}
