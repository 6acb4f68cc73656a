// Package project turns a model repository into what is shipped of it: it reads
// the manifest sluice.yaml, decides by ignore rules which files go, and writes
// them as an archive whose bytes depend on nothing but names, contents, execute
// bits and links of these files.
//
// # What ships
//
// If the project's root has a .amlignore, files of that name say what stays out,
// in every directory; else files named .gitignore do. Their meaning is git's
// (gitignore(5)), always case-sensitive, with two differences that make the result
// the same in every checkout: only files inside the project count (no
// core.excludesFile, no .git/info/exclude), and whether git tracks a file does not
// matter. Beyond the rules:
//
//   - .git, at any depth, and .sluice at the root never ship;
//   - sluice.yaml, what models name, and the test's request ship even if ignored;
//   - what include names ships even if ignored or secret-looking;
//   - a file that looks like a secret is refused unless include names it;
//   - directories are not entries of their own, so empty ones do not ship.
//
// # The archive
//
// The archive is an uncompressed POSIX (PAX) tar: modes 0644 or 0755 by the owner's
// execute bit, times 0, owner and group 0 without names, entries in the order of
// their paths' bytes. Its digest is the SHA-256 of these bytes. Compression, where
// wanted, is put around it and never counts. A system without execute bits, Windows,
// cannot tell which files have them, so archives made there have none. After the
// project's files follow links under .sluice/models that lay out the models for the
// script (see ModelDir).
package project
