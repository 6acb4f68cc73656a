package project

import (
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/sluice-dev/sluice/rollout"
)

// CheckImage refuses what is not the name of an image, nil if it is one. No refusal has what may be credentials in it.
func CheckImage(field, ref string) *rollout.Error {
	const form = "write it as [HOST[:PORT]/]NAME[:TAG], or with @sha256:… for a fixed one"
	if HasUser(ref) {
		return refuse(rollout.ReasonInvalid, field, "take them out, and log in with `docker login` (or the like: its credential store is read)", "the name of an image has credentials in it")
	}
	if strings.Contains(ref, "//") { // else https: would be a registry
		return refuse(rollout.ReasonInvalid, field, form, "%q is not the name of an image: it has // in it", ref)
	}
	if _, err := name.ParseReference(ref); err != nil {
		return refuse(rollout.ReasonInvalid, field, form, "%q is not the name of an image", ref)
	}
	return nil
}

// HasUser tells whether the name of an image or of a registry has a user in it, who may have a password or be a token: an @, behind
// which in other names stands a digest.
func HasUser(ref string) bool {
	_, after, has := strings.Cut(ref, "@")
	return has && !strings.HasPrefix(after, "sha256:") && !strings.HasPrefix(after, "sha512:")
}
