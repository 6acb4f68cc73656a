// Package image makes the image of a version from a project, without Docker: it takes
// a base image by reference, puts layers of its own on it and pushes the result to a registry,
// where it is named by its digest. It makes Sluice's own images in the same way.
//
// # What is in a version's image
//
// From below, so that what changes most often lies on top and moves alone:
//
//   - the base image's layers, which are never unpacked, and are mounted instead of copied where base
//     and image share a registry;
//   - the runner, /sluice/runner, the first process;
//   - a layer for each large file, of models or not, and one for all small files of models together (see
//     bigFile); what does not shrink is not compressed, since that would cost minutes and each node some seconds;
//   - the rest of the project, in /var/azureml-app as all of it.
//
// # The same input gives the same digest
//
// The digest depends on the base image (by digest), the runner's bytes, the bytes that the project's archive would have, and
// where they are said to come from (reference of the base, commit, address of the source). Nothing
// else enters: times are zero, owners are root, modes 0644 and 0755, entries are in the
// archive's order. Compression is that of a library which this module pins, so that it does
// not change with the version of Go either.
//
// # What the image says
//
// The runner is the entry point; its arguments are what to run, which a pod with a custom
// server's command replaces. All else that it is told is in variables, which a pod overrides
// one by one. Numbers of a version (slots, timeouts) are not in the image at all.
package image
