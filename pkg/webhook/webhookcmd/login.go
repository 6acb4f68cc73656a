package webhookcmd

import (
	"flag"
	"fmt"
	"log/slog"
	"strings"

	"github.com/sluice-dev/sluice/pkg/page"
	"github.com/sluice-dev/sluice/pkg/page/login"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/rollout"
)

// loginConfig is what flags say of the page's login.
type loginConfig struct {
	issuer, clientID, clientSecretFile, url, policy, scopes string
}

func (l *loginConfig) flags(f *flag.FlagSet) {
	f.StringVar(&l.issuer, "page-login-issuer", "", "OpenID Connect issuer that people log in to the page at; nobody can without it")
	f.StringVar(&l.clientID, "page-login-client-id", "", "the page's id at the issuer")
	f.StringVar(&l.clientSecretFile, "page-login-client-secret-file", "", "file with the page's secret at the issuer, if it has one there")
	f.StringVar(&l.url, "page-login-url", "", "address by which people reach the page, such as https://sluice.example; the issuer answers at /login/callback there")
	f.StringVar(&l.policy, "page-login-policy", "", "file that says what people who have logged in may do")
	f.StringVar(&l.scopes, "page-login-scopes", "profile,email", "what is asked of the issuer beside openid, with commas between; some give groups only for a scope of that name")
}

// people can log in, or nil if nobody can. It reads what that needs before anything is opened.
func (c config) people(show page.Mode, log *slog.Logger) (*login.Login, error) {
	invalid := func(field, hint, message string) error {
		return &rollout.Error{Reason: rollout.ReasonInvalid, Field: field, Message: message, Hint: hint}
	}
	l := c.login
	if l.issuer == "" {
		for flag, value := range map[string]string{"client-id": l.clientID, "client-secret-file": l.clientSecretFile, "url": l.url, "policy": l.policy} {
			if value != "" {
				return nil, invalid("page-login-issuer", "name the OpenID Connect issuer that people log in at", "--page-login-"+flag+" is given, and no issuer")
			}
		}
		if show == page.ModeLogin {
			return nil, invalid("page-login-issuer", "name the OpenID Connect issuer that people log in at; docs/page.md shows how", "the page is for those who have logged in (--page=login), and there is no issuer, so that nobody could")
		}
		return nil, nil
	}
	if show == page.ModeNone {
		return nil, invalid("page", "say --page=login, loopback or anyone, or leave --page-login-issuer out", "people can log in to a page that is off")
	}
	if l.policy == "" {
		return nil, invalid("page-login-policy", "name a file; docs/page.md shows one", "no policy is given, so that a login would permit nothing")
	}
	policy, err := login.ReadPolicy(l.policy)
	if err != nil {
		return nil, err
	}
	secret := []byte(process.Getenv(c.env, "SLUICE_PAGE_LOGIN_CLIENT_SECRET"))
	if l.clientSecretFile != "" {
		if secret, err = readSecret(l.clientSecretFile); err != nil {
			return nil, fmt.Errorf("read the page's secret at the issuer: %w", err)
		}
		if len(strings.TrimSpace(string(secret))) == 0 {
			return nil, invalid("page-login-client-secret-file", "write the secret into it, or leave the flag out", l.clientSecretFile+" is empty")
		}
	}
	key, err := c.sessionKey()
	if err != nil {
		return nil, err
	}
	scopes := strings.FieldsFunc(l.scopes, func(r rune) bool { return r == ',' || r == ' ' })
	people, err := login.New(login.Config{
		Issuer: l.issuer, ClientID: l.clientID, ClientSecret: strings.TrimSpace(string(secret)), URL: l.url, Scopes: append([]string{}, scopes...), Policy: policy, Key: key, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	log.Info("people can log in to the page", "issuer", l.issuer, "url", l.url, "rules", len(policy.Rules))
	if len(key) == 0 {
		log.Info("logins end with this process, and no other server knows them: no key is given (--api-session-key-file)")
	}
	return people, nil
}
