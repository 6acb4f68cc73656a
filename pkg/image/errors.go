package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/sluice-dev/sluice/rollout"
)

// The fields that refusals name.
const (
	fieldRegistry = "registry"
	fieldBase     = "environment.baseImage"
	fieldPlatform = "platform"
	fieldRunner   = "runner"
)

func refuse(reason rollout.Reason, field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// failure is what a registry's error means; doing is a verb and its object. missing is for
// an answer that what was asked for is not there.
func failure(err error, field, doing string, reg name.Registry, missing rollout.Reason) error {
	var known *rollout.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if err := brokenOff(err, field, doing); err != nil {
		return err
	}
	host := reg.RegistryStr()
	const login = "log in with `docker login %s` (or the like: its credential store is read), and check that the account may do it"
	var said *transport.Error
	if errors.As(err, &said) {
		switch said.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			hint := fmt.Sprintf(login, host)
			if field == fieldBase {
				hint += "; some registries say this of images that are not there"
			}
			return refuse(rollout.ReasonRegistryDenied, field, hint, "%s: %s does not allow it: %v", doing, host, said)
		case http.StatusNotFound:
			hint := "check its name, and that the repository exists"
			if missing == rollout.ReasonBaseImageMissing {
				hint = "check its name and tag"
			}
			return refuse(missing, field, hint, "%s: %s does not have it: %v", doing, host, said)
		case http.StatusTooManyRequests, http.StatusRequestTimeout:
		default:
			if said.StatusCode < 500 {
				return refuse(rollout.ReasonRegistryRefused, field, "the registry's own message says what it wants", "%s: %s refuses it: %v", doing, host, said)
			}
		}
		hint := "try again; if it stays so, ask who runs the registry"
		if said.StatusCode == http.StatusInsufficientStorage {
			hint = "its disk is full: make room there, and try again"
		}
		return refuse(rollout.ReasonRegistryUnreachable, field, hint, "%s: %s fails: %v", doing, host, said)
	}
	hint := "check the address, and that it can be reached from here"
	if text := err.Error(); strings.Contains(text, "HTTP response to HTTPS client") || strings.Contains(text, "x509: ") || strings.Contains(text, "tls: ") {
		hint = "check its certificate; a registry that speaks plain HTTP has to be named as insecure"
	}
	for _, broken := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, broken) {
			return refuse(rollout.ReasonRegistryUnreachable, field, tryAgain, "%s: %s breaks the connection: %v", doing, host, err)
		}
	}
	return refuse(rollout.ReasonRegistryUnreachable, field, hint, "%s: %s cannot be reached: %v", doing, host, err)
}

// tryAgain is what to do about connections that break.
const tryAgain = "try again; if it stays so, ask who runs the registry, or the proxy before it"

// brokenOff is the refusal that err stands for if it is an answer that broke off, and else nil. The answer says where from, which
// may be another registry than the one that is written to.
func brokenOff(err error, field, doing string) error {
	var broken errBroken
	if !errors.As(err, &broken) {
		return nil
	}
	return refuse(rollout.ReasonRegistryUnreachable, field, tryAgain, "%s: %v", doing, broken)
}

// diskFull is err, or the refusal that it stands for if no space was left for what.
func diskFull(err error, what, hint string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return refuse(rollout.ReasonDiskFull, "", hint, "no space is left on the disk for %s", what)
	}
	return err
}
