//go:build unix && !linux

package local

import "syscall"

func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// reap waits for the end of p and kills what is left of its group.
func (p *process) reap() {
	p.err = p.cmd.Wait()
	p.killGroup()
}

// sweep is Linux's: elsewhere the lifeline alone ends replicas whose host was killed.
func sweep(string) error { return nil }
