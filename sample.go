// Package sluice holds the sample model repository that the demo deploys.
package sluice

import (
	"embed"
	"io/fs"
)

//go:embed all:testdata/breast-cancer
var sample embed.FS

// Sample is the sample model repository as it stands in testdata/breast-cancer.
func Sample() (fs.FS, error) { return fs.Sub(sample, "testdata/breast-cancer") }
