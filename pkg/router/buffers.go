package router

import "sync"

// The sizes of pooled buffers: most bodies fit into the small ones, and what is kept
// of a body, with one byte more, into the large ones.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64<<10 + 64
)

type buffer struct{ b []byte }

type buffers struct{ small, large sync.Pool }

// buffer is the one in the field if it is large enough, else one from the pools: put
// into the field, so that release finds it.
func (p *buffers) buffer(field **buffer, n int) []byte {
	if *field != nil {
		if len((*field).b) >= n {
			return (*field).b
		}
		p.release(*field)
	}
	pool, size := &p.small, smallBuffer
	if n > smallBuffer {
		pool, size = &p.large, max(largeBuffer, n)
	}
	b, _ := pool.Get().(*buffer)
	if b == nil || len(b.b) < n {
		b = &buffer{make([]byte, size)}
	}
	*field = b
	return b.b
}

func (p *buffers) release(b *buffer) {
	switch {
	case b == nil:
	case len(b.b) == smallBuffer:
		p.small.Put(b)
	case len(b.b) == largeBuffer:
		p.large.Put(b)
	}
}
