//go:build !unix

package upstream

import "syscall"

// watch does nothing: a connection that the replica closed is noticed when it is used.
func (c *Conn) watch(syscall.RawConn) {}
