package dispatch

// freeHeap orders the replicas of a version that have a free slot and may be
// given it: fewest requests in flight first, and of equals the one that has been
// left alone longest, so that an idle fleet shares what little there is, and a replica
// that fails fast does not draw all traffic to itself.
type freeHeap []*replica

func (h freeHeap) less(i, j int) bool {
	if h[i].inFlight != h[j].inFlight {
		return h[i].inFlight < h[j].inFlight
	}
	return h[i].used < h[j].used
}

func (h freeHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *freeHeap) push(r *replica) {
	r.index = len(*h)
	*h = append(*h, r)
	h.up(r.index)
}

func (h *freeHeap) remove(r *replica) {
	i, last := r.index, len(*h)-1
	if i != last {
		h.swap(i, last)
	}
	(*h)[last] = nil
	*h = (*h)[:last]
	r.index = -1
	if i != last {
		h.fix(i)
	}
}

func (h *freeHeap) fix(i int) {
	if !h.down(i) {
		h.up(i)
	}
}

func (h freeHeap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !h.less(i, parent) {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h freeHeap) down(i int) bool {
	start := i
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h.less(child+1, child) {
			child++
		}
		if !h.less(child, i) {
			break
		}
		h.swap(i, child)
		i = child
	}
	return i > start
}
