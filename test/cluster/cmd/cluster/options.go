package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-dev/sluice/test/cluster/internal/supervisor"
)

// options are those of every command.
type options struct {
	dir string
}

// paths are where things are.
type paths struct {
	// cluster has what lives as long as a cluster, and cache what outlives it.
	cluster, cache string
	// module is the source of this program and of those that it runs.
	module string
}

// moduleLine is how the go.mod of this module begins.
const moduleLine = "module github.com/sluice-dev/sluice/test/cluster\n"

// paths finds the repository above the working directory, or else above this program.
func (o *options) paths() (paths, error) {
	work, err := os.Getwd()
	if err != nil {
		return paths{}, fmt.Errorf("find working directory: %w", err)
	}
	program, err := os.Executable()
	if err != nil {
		return paths{}, fmt.Errorf("find program: %w", err)
	}
	for _, from := range []string{work, filepath.Dir(program)} {
		for dir := from; ; dir = filepath.Dir(dir) {
			module := filepath.Join(dir, "test", "cluster")
			if body, err := os.ReadFile(filepath.Join(module, "go.mod")); err == nil && bytes.HasPrefix(body, []byte(moduleLine)) {
				p := paths{cache: filepath.Join(dir, ".cache"), module: module}
				p.cluster, err = o.cluster(p.cache)
				return p, err
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return paths{}, errors.New("find sources: neither the working directory nor this program is inside Sluice's repository")
}

func (o *options) cluster(cache string) (string, error) {
	dir := o.dir
	if dir == "" {
		dir = filepath.Join(cache, "cluster")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find directory: %w", err)
	}
	// The cluster has directories of its own in these places, which would hide its files from it.
	for _, hidden := range []string{"/run/", "/var/run/", "/var/lib/", "/var/log/", "/proc/", "/sys/"} {
		if strings.HasPrefix(dir, hidden) {
			return "", fmt.Errorf("use directory %s: a cluster cannot be below %s", dir, hidden)
		}
	}
	return dir, nil
}

func (o *options) client() (supervisor.Client, error) {
	p, err := o.paths()
	if err != nil {
		return supervisor.Client{}, err
	}
	return supervisor.NewClient(p.cluster), nil
}
