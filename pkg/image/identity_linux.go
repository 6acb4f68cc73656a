package image

import (
	"encoding/binary"
	"io/fs"
	"syscall"
	"time"
)

// identity of a file's content: what changes whenever the content does. changed is the last time that it
// did, or may have. ok is false where the system does not tell.
func identity(info fs.FileInfo) (id []byte, changed time.Time, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, time.Time{}, false
	}
	for _, n := range []int64{int64(st.Dev), int64(st.Ino), st.Size, info.ModTime().UnixNano(), st.Ctim.Nano()} { //nolint:gosec // only the bits count
		id = binary.BigEndian.AppendUint64(id, uint64(n)) //nolint:gosec // only the bits count
	}
	changed = time.Unix(0, st.Ctim.Nano())
	if m := info.ModTime(); m.After(changed) {
		changed = m
	}
	return id, changed, true
}
