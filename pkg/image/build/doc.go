// Package build builds an environment's image from a Dockerfile and pushes it, with a BuildKit that runs
// elsewhere: a buildkitd, or the one in the Docker engine, which is what GitHub's runners have.
//
// # Who pushes
//
// The builder does, not this process: a base image of gigabytes, which the builder has or fetches once and a
// registry mounts, would otherwise pass twice through the machine that asks. BuildKit writes blobs first
// and the manifest, under its tag, last, so that the tag names a whole image or does not change.
// A Docker engine without the containerd image store cannot push a build; there the
// image is built into the engine's store, pushed by the engine, whose order is the same, and untagged again.
//
// # The same input gives the same digest
//
// As far as the steps themselves are reproducible: all times in the image's own layers and configuration are
// zero, files of the context belong to root and have modes 0644 and 0755, and no attestation is attached, which
// would tell of the machine. This does not hold for a Docker engine without the containerd image
// store: it keeps times.
//
// # Credentials
//
// They come from a keychain and go to the builder only when a registry asks for them, over the session of the one
// build. They are in no argument, layer or log.
package build
