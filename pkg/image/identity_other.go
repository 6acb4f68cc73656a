//go:build !linux

package image

import (
	"io/fs"
	"time"
)

// identity of a file's content is not told here.
func identity(fs.FileInfo) (id []byte, changed time.Time, ok bool) { return nil, time.Time{}, false }
