// Package cgroup makes and removes the control groups below which a cluster's pods run, on hosts
// with either version of cgroups.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// root is where the kernel's interface is mounted on every distribution with systemd.
const root = "/sys/fs/cgroup"

// Make makes the group name at the root of every hierarchy: the kubelet wants its cgroup root to exist.
func Make(name string) error {
	if unified() {
		return makeUnified(name)
	}
	hierarchies, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		dir := filepath.Join(h, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		// A new cpuset has no processors and no memory nodes, and takes no process without.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			of, err := os.ReadFile(filepath.Join(h, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), of, 0o644)
			}
			if err != nil {
				return fmt.Errorf("fill cpuset: %w", err)
			}
		}
	}
	return nil
}

func makeUnified(name string) error {
	available, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	dir := filepath.Join(root, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	for _, at := range []string{root, dir} {
		for _, controller := range strings.Fields(string(available)) {
			// One at a time, and not all have to be had: the kubelet names those that it needs.
			if err := os.WriteFile(filepath.Join(at, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil &&
				slices.Contains([]string{"cpu", "memory", "pids"}, controller) {
				return fmt.Errorf("enable controller %s in %s: %w", controller, at, err)
			}
		}
	}
	return nil
}

// Remove removes the group name and all below it. It waits, until ctx ends, for processes that are
// still ending.
func Remove(ctx context.Context, name string) error {
	tops := []string{root}
	if !unified() {
		var err error
		if tops, err = hierarchies(); err != nil {
			return err
		}
	}
	for _, top := range tops {
		for {
			err := removeTree(filepath.Join(top, name))
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("remove cgroup: %w", err)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

// removeTree removes dir bottom-up; files of a cgroup cannot be removed and go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(root, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// hierarchies are the mount points of version 1, each once: cpu and cpuacct may be links to one.
func hierarchies() ([]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	var all []string
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, filepath.Join(root, e.Name()))
		}
	}
	return all, nil
}
