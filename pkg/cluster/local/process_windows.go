package local

import "syscall"

// canHost: Windows can pass on neither sockets nor signals, so replicas run elsewhere.
// Endpoints, journal, keys and archives work.
const canHost = false

func processAttributes() *syscall.SysProcAttr { return nil }

func (p *process) reap() { p.err = p.cmd.Wait() }

func sweep(string) error { return nil }
