package project

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"
)

// Archive says what Write wrote.
type Archive struct {
	// Digest of the archive's bytes: "sha256:" and 64 hexadecimal digits.
	Digest string `json:"digest"`
	// Size of the archive in bytes.
	Size int64 `json:"size"`
	// Files and links of the project in it; the links that lay out models are not counted.
	Files int `json:"files"`
}

// Memory of one Write: readAhead pieces of pieceSize, whatever the tree's size.
const (
	pieceSize = 256 << 10
	readAhead = 16
)

// Write writes the archive of what ships to w. The bytes are the same for the same
// content (see the package's comment). It refuses what l.Err refuses, and stops with
// an error that names the file if one changes while it is read; what was written
// until then is no archive. Reading runs ahead of hashing and writing, and hashing
// beside writing. Memory stays at a few MiB plus the longest directory's names.
func Write(ctx context.Context, w io.Writer, l *Listing) (Archive, error) {
	if err := l.Err(); err != nil {
		return Archive{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &reader{l: l, pieces: make(chan piece, readAhead), free: make(chan []byte, readAhead)}
	for range readAhead {
		r.free <- nil // allocated when first used
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.run(ctx) })
	out := newDigester(w)
	a, err := writeTar(ctx, out, r)
	cancel()
	wg.Wait()
	out.close()
	if err != nil {
		return Archive{}, fmt.Errorf("write archive: %w", err)
	}
	a.Digest = "sha256:" + hex.EncodeToString(out.sum.Sum(nil))
	a.Size = out.size
	return a, nil
}

// writeTar takes the pieces as they come.
func writeTar(ctx context.Context, out io.Writer, r *reader) (Archive, error) {
	var a Archive
	tw := tar.NewWriter(out)
	for {
		var p piece
		select {
		case p = <-r.pieces:
		case <-ctx.Done():
			return a, ctx.Err()
		}
		if p.entry != nil {
			if err := tw.WriteHeader(header(p.entry)); err != nil {
				return a, fmt.Errorf("%s: %w", printable(p.entry.Path), err)
			}
			if !p.layout {
				a.Files++
			}
		}
		if len(p.data) > 0 {
			if _, err := tw.Write(p.data); err != nil {
				return a, err
			}
		}
		if p.data != nil {
			r.free <- p.data[:cap(p.data)]
		}
		if p.err != nil {
			return a, p.err
		}
		if p.last {
			return a, tw.Close()
		}
	}
}

// header of an entry, with nothing in it that depends on the machine.
func header(e *Entry) *tar.Header {
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: e.Path, Size: e.Size, Mode: 0o644,
		ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	}
	switch {
	case e.Type == TypeLink:
		h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, e.Target, 0, 0o777
	case e.Executable:
		h.Mode = 0o755
	}
	return h
}

// piece is a part of the archive's content: the beginning of an entry, data of the
// current one, or both.
type piece struct {
	entry  *Entry
	layout bool
	data   []byte
	last   bool // nothing follows
	err    error
}

// reader walks and reads the project ahead of its archive.
type reader struct {
	l      *Listing
	pieces chan piece
	// free holds the buffers not in use; taking one is what bounds the read-ahead.
	free chan []byte
}

func (r *reader) run(ctx context.Context) {
	err := r.l.walkAll(ctx, walkOptions{}, func(it *item) error {
		switch {
		case it.Action == Leave:
			return nil
		case it.Action == Refuse:
			return it.Refusal // appeared since Plan
		case it.Type == TypeLink:
			e := it.Entry
			return r.send(ctx, piece{entry: &e, layout: it.isLayout()})
		}
		return r.file(ctx, it)
	})
	_ = r.send(ctx, piece{last: true, err: err})
}

func (r *reader) send(ctx context.Context, p piece) error {
	select {
	case r.pieces <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *reader) buffer(ctx context.Context) ([]byte, error) {
	select {
	case b := <-r.free:
		if b == nil {
			b = make([]byte, pieceSize)
		}
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// file sends one file, which must stay as it was when the walk saw it.
func (r *reader) file(ctx context.Context, it *item) error {
	f, err := r.l.open(it)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	e := it.Entry
	next := piece{entry: &e}
	for left := it.Size; ; {
		if left > 0 {
			b, err := r.buffer(ctx)
			if err != nil {
				return err
			}
			n, err := io.ReadFull(f, b[:min(left, int64(len(b)))])
			if err != nil {
				return err
			}
			next.data = b[:n]
			left -= int64(n)
		}
		if err := r.send(ctx, next); err != nil {
			return err
		}
		if left == 0 {
			return nil
		}
		next = piece{}
	}
}

func baseName(p string) string {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '/' {
			return p[i+1:]
		}
	}
	return p
}

// digester hashes what it writes, large pieces beside the writing.
type digester struct {
	w       io.Writer
	sum     hash.Hash
	size    int64
	work    chan []byte
	done    chan struct{}
	workers sync.WaitGroup
}

// besideFrom is the size from which handing a piece to another goroutine pays.
const besideFrom = 32 << 10

func newDigester(w io.Writer) *digester {
	d := &digester{w: w, sum: sha256.New(), work: make(chan []byte), done: make(chan struct{})}
	d.workers.Go(func() {
		for p := range d.work {
			d.sum.Write(p)
			d.done <- struct{}{}
		}
	})
	return d
}

func (d *digester) close() {
	close(d.work)
	d.workers.Wait()
}

func (d *digester) Write(p []byte) (int, error) {
	d.size += int64(len(p))
	if len(p) < besideFrom || d.w == io.Discard {
		d.sum.Write(p)
		return d.w.Write(p)
	}
	d.work <- p
	n, err := d.w.Write(p)
	<-d.done
	return n, err
}
