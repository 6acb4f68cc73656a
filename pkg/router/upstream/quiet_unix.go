//go:build unix

package upstream

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// watch prepares quiet: a poll without waiting, which sees bytes, an end and an error.
func (c *Conn) watch(raw syscall.RawConn) {
	fds := make([]unix.PollFd, 1)
	quiet := false
	look := func(fd uintptr) {
		fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		n, err := unix.Poll(fds, 0)
		quiet = n == 0 && err == nil
	}
	c.isQuiet = func() bool {
		quiet = false
		return raw.Control(look) == nil && quiet
	}
}
