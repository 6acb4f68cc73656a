// Package environment says by content what a project's environment is: a base image, docker steps
// with the files that they copy, a Conda definition or requirements, or a Dockerfile of the project's
// own with its build context. Two projects whose environments have the same content have the same
// hash, which keys the environment's image, and one build serves both.
//
// # The canonical form
//
// The hash is the SHA-256, in lower-case hex, of the canonical form:
//
//	form   = "sluice-environment 1" LF *record
//	record = kind 1*(SP field) LF
//	field  = length ":" bytes          ; length of bytes in decimal
//
// Each kind has a fixed number of fields and its place in the form, so that no two sequences of
// records have the same bytes. docs/environments.md lists the kinds, what they hold and in which
// order they stand, and testdata/vectors has examples with their forms and hashes. A change of any of
// that needs another number in the first line.
//
// # What does not count
//
// The environment's name and version, variables, the names of the definition's own files, times,
// owners and modes beyond the execute bit; comments, blank lines and white space in requirements and
// Conda definitions, and the order of keys in the latter. The order of channels and packages counts.
package environment
