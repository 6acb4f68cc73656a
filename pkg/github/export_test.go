package github

import "golang.org/x/sync/semaphore"

// ChunkSize is what a body takes of its allowance at least.
const ChunkSize = chunkSize

// SetAllowances for bodies, in bytes.
func SetAllowances(in *Intake, n int64) {
	in.small, in.large = semaphore.NewWeighted(n), semaphore.NewWeighted(n)
}

// RestFor is how long GitHub is left alone after an error.
var RestFor = restFor
