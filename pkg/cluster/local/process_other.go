//go:build unix && !linux

package local

import "syscall"

const canHost = true

func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// reap waits for the end of p and kills what is left of its group.
func (p *process) reap() {
	p.err = p.cmd.Wait()
	p.killGroup()
}

// killGroup ends what the process started and left in its group.
func (p *process) killGroup() { _ = syscall.Kill(-p.pid(), syscall.SIGKILL) }

// sweep is Linux's: elsewhere the lifeline alone ends replicas whose host was killed.
func sweep(string) error { return nil }
