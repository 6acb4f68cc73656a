// Package files finds and reads Azure ML's configuration files on a disk, for package azureml.
package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/project/azureml"
	"github.com/sluice-dev/sluice/rollout"
)

// Names of the files; empty ones are not there. Errors call them so.
type Names struct {
	Inference, Deployment, Environment string
	// Base is the directory that the names are relative to; empty is the present one.
	Base string
}

// Find looks for the files in a project's directory by the names that they have in Azure ML's documentation, for Base empty.
func Find(dir string) Names {
	first := func(names ...string) string {
		for _, name := range names {
			p := filepath.Join(dir, name)
			if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
				return p
			}
		}
		return ""
	}
	return Names{
		Inference:   first("inferenceconfig.json", "inferenceconfig.yml", "inferenceconfig.yaml"),
		Deployment:  first("deploymentconfig.json", "deploymentconfig.yml", "deploymentconfig.yaml"),
		Environment: first("azureml_environment.json"),
	}
}

// Read makes a manifest for the project in dir of the files, and gives it as what reads projects takes. What o says beside
// them counts for the names of versions: they are named after a commit only if the files are in the project, git has them, and o
// has neither models nor fields to leave out. o.ReadFile is not needed. Errors are those of azureml.Convert, or say that a file
// cannot be read.
func Read(dir string, n Names, o azureml.Options) (*azureml.Converted, *project.Given, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("open project: %w", err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, nil, fmt.Errorf("open project: %w", err)
	}
	defer func() { _ = root.Close() }()
	var in azureml.Input
	var sources []string
	beside := len(o.Models) > 0 || len(o.LeaveOut) > 0
	for _, f := range []struct {
		name string
		to   **azureml.File
	}{{n.Inference, &in.Inference}, {n.Deployment, &in.Deployment}, {n.Environment, &in.Environment}} {
		if f.name == "" {
			continue
		}
		at := f.name
		if !filepath.IsAbs(at) {
			at = filepath.Join(n.Base, at)
		}
		if at, err = filepath.Abs(at); err != nil {
			return nil, nil, fmt.Errorf("find %s: %w", f.name, err)
		}
		data, err := readFile(at)
		if err != nil {
			return nil, nil, &project.Error{File: f.name, Refusal: &rollout.Error{
				Reason: rollout.ReasonInvalid, Message: fmt.Sprintf("cannot be read: %v", err), Hint: "name a file of Azure ML's",
			}}
		}
		rel, err := filepath.Rel(abs, at)
		if err == nil && filepath.IsLocal(rel) {
			sources = append(sources, filepath.ToSlash(rel))
		} else {
			beside = true
			rel = "../" + filepath.Base(at)
		}
		*f.to = &azureml.File{Name: f.name, Data: data, Dir: path.Dir(filepath.ToSlash(rel))}
	}
	o.ReadFile = func(name string) ([]byte, error) {
		f, err := root.Open(filepath.FromSlash(name))
		if err != nil {
			return nil, cause(err)
		}
		return read(f)
	}
	made, err := azureml.Convert(in, o)
	if err != nil {
		return nil, nil, err
	}
	return made, made.Given(sources, beside), nil
}

// cause is an error about a path without the path.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, cause(err)
	}
	return read(f)
}

// read reads a regular file, no further than what shows that it is too large, and closes it.
func read(f *os.File) ([]byte, error) {
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, project.MaxManifestSize+1))
	if err == nil && len(data) > project.MaxManifestSize {
		err = fmt.Errorf("it is larger than %d bytes", project.MaxManifestSize)
	}
	return data, err
}
