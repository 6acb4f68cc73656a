package access

import (
	"errors"
	"fmt"
	"net"
	"net/url"
)

// Secure says whether tokens may go to, and keys come from, an address: an http URL without
// credentials, query and fragment whose scheme is https, or whose host is on loopback.
func Secure(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return errors.New("it cannot be parsed as a URL") // err quotes it, and what it quotes may be a secret
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return errors.New("it is not an http URL")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("it has credentials, a query or a fragment")
	case u.Scheme == "http" && !Loopback(u.Hostname()):
		return fmt.Errorf("it must begin with https, because tokens are sent to %s", u.Hostname())
	}
	return nil
}

// Loopback says whether a host's name or address never leaves this machine.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
