package dispatch

// queue is a version's waiters, first come first. Order is by arrival at the
// endpoint, so that a request that was refused, or comes from a version that
// cannot serve any more, takes the place it would have had.
type queue struct {
	head, tail *Lease
	len        int
	// cursor is the last one inserted out of order: the next one mostly follows it.
	cursor *Lease
}

func (q *queue) insert(l *Lease) {
	q.len++
	after := q.tail
	if after != nil && after.seq > l.seq {
		after = nil
		at := q.head
		if c := q.cursor; c != nil && c.seq < l.seq {
			after, at = c, c.next
		}
		for at.seq < l.seq { // the tail is beyond
			after, at = at, at.next
		}
		q.cursor = l
	}
	l.prev = after
	if after == nil {
		l.next, q.head = q.head, l
	} else {
		l.next, after.next = after.next, l
	}
	if l.next == nil {
		q.tail = l
	} else {
		l.next.prev = l
	}
}

func (q *queue) remove(l *Lease) {
	q.len--
	if q.cursor == l {
		q.cursor = nil
	}
	if l.prev == nil {
		q.head = l.next
	} else {
		l.prev.next = l.next
	}
	if l.next == nil {
		q.tail = l.prev
	} else {
		l.next.prev = l.prev
	}
	l.prev, l.next = nil, nil
}
