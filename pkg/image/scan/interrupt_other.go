//go:build !unix

package scan

import "os"

// interrupt ends a process, where none can be asked to.
func interrupt(p *os.Process) error { return p.Kill() }
