package chatops_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/rollout"
)

const permissionsHead = "apiVersion: sluice.dev/v1alpha1\nkind: CommandPermissions\n"

func permissions(t *testing.T, body string) *chatops.Permissions {
	t.Helper()
	p, err := chatops.ParsePermissions([]byte(permissionsHead + body))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func withPermissions(t *testing.T, body string) func(*world) {
	return func(w *world) {
		w.options.Permissions, w.options.Directory = permissions(t, body), w.client
		w.gh.AddTeamMember("acme", "ml-leads", "rita")
	}
}

func TestPermissionsAreReadStrictly(t *testing.T) {
	for body, want := range map[string]string{
		"kind: Other\n": "CommandPermissions",
		permissionsHead + "default: {roles: x}\n":                                "roles",
		permissionsHead + "default: {}\n":                                        "github-permissions.default: it is for nobody",
		permissionsHead + "default: {role: read}":                                "everybody may read",
		permissionsHead + "default: {role: owner}\n":                             `"owner" is no role`,
		permissionsHead + "default: {role: none}\n":                              `"none" is no role`,
		permissionsHead + "commands: {promote: {role: read}}\n":                  "github-permissions.commands.promote.role",
		permissionsHead + "commands: {deploy: {role: write}}\n":                  `"deploy" is not a command`,
		permissionsHead + "commands: {promote: {teams: [acme/ml-leads]}}\n":      "github-permissions.commands.promote.teams[0]",
		permissionsHead + "commands: {promote: {teams: [..]}}\n":                 "not the slug",
		permissionsHead + "commands: {hold: {teams: [a,b,c,d,e,f,g,h,i,j,k]}}\n": "11 teams",
		permissionsHead + "repositoryFile: ../x\n":                               "github-permissions.repositoryFile",
		permissionsHead + "repositoryFile: /etc/passwd\n":                        "not a path in a repository",
		permissionsHead + "repositoryFile: 'a?ref=evil'\n":                       "not a path in a repository",
	} {
		if _, err := chatops.ParsePermissions([]byte(body)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q in it", body, err, want)
		}
	}
	for _, body := range []string{"", "commands: {status: {role: read}, rollback: {role: triage, teams: [ml-leads]}}\nrepositoryFile: .github/sluice.yaml\n"} {
		if _, err := chatops.ParsePermissions([]byte(permissionsHead + body)); err != nil {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestPermissionPerCommand(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPermissions(t, `
commands:
  promote: {role: maintain, teams: [ml-leads]}
  traffic: {teams: [ml-leads]}
  rollback: {role: triage}
  status: {role: read}
`))
	id := int64(100)
	for _, c := range []struct {
		login, command string
		may            bool
	}{
		{"rita", "/status", true},
		{"nobody", "/status", false},
		{"rita", "/hold", false}, // a team for one command is none for another
		{"tri", "/hold", false},
		{"alice", "/promote", false},
		{"alice", "/traffic 20", false},
		{"root", "/traffic 20", false}, // a rule with teams alone is for nobody else
		{"rita", "/traffic 20", true},
		{"alice", "/resume", true},
		{"fake", "/rollback", false}, // a custom role called like a better one, with read beneath
		{"tri", "/rollback", true},
		{"max", "/sluice promoet", true}, // may ask, and is told what was meant
		{"nobody", "/sluice promoet", false},
	} {
		id++
		w.gh.AccountID(c.login)
		e, reply := w.run(id, c.login, c.command)
		if got := e.Reason != rollout.ReasonDenied; got != c.may {
			t.Errorf("%s %s: %s (%s); may it be? %v", c.login, c.command, e.State, e.Reason, c.may)
		}
		if !c.may && strings.Contains(reply, control) {
			t.Errorf("%s was told about versions:\n%s", c.login, reply)
		}
	}
	_, reply := w.run(200, "alice", "/promote")
	wantIn(t, reply, "alice has the role write", "the role maintain or admin, or a place in the team ml-leads")
	_, reply = w.run(201, "alice", "/help")
	wantIn(t, reply, "| needs ", "a place in the team ml-leads")
}

// A button is the command of its name, in permissions too.
func TestPermissionOfButtons(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPermissions(t, "commands: {promote: {role: maintain}}\n"))
	for i, login := range []string{"alice", "max"} {
		delivery := fmt.Sprintf("button-%d", i)
		b := chatops.Button{
			Digest: delivery, Repository: w.comment(1, login, "").Repository, PullRequest: pull, Sender: login, SenderID: w.gh.AccountID(login),
			Action: chatops.Promote, Head: commit(2), Endpoint: fraud,
		}
		if _, err := w.service.AcceptButton(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		e := w.finished(chatops.ButtonName(delivery))
		if want := []cluster.EntryState{cluster.EntryRefused, cluster.EntryDone}[i]; e.State != want {
			t.Errorf("%s: %s (%s) %s, want %s", login, e.State, e.Reason, e.Result, want)
		}
	}
}

func TestPermissionsOfTheRepository(t *testing.T) {
	t.Parallel()
	const file = ".github/sluice.yaml"
	strict := permissionsHead + "commands: {promote: {role: admin}}\n"
	for name, c := range map[string]struct {
		base    string
		files   map[string]string // by branch
		login   string
		refused string
	}{
		"none":                            {login: "alice"},
		"stricter":                        {files: map[string]string{"main": strict}, login: "alice", refused: "the branch main says"},
		"stricter, met":                   {files: map[string]string{"main": strict}, login: "root"},
		"weaker than the server":          {files: map[string]string{"main": permissionsHead + "default: {role: triage}\n"}, login: "tri", refused: "the role write, maintain or admin"},
		"on the branch of the change":     {files: map[string]string{"better": permissionsHead + "default: {role: triage}\n"}, login: "alice"},
		"a base of one's own":             {base: "mine", files: map[string]string{"main": strict}, login: "alice", refused: "the branch main says"},
		"stricter on the base":            {base: "release", files: map[string]string{"release": strict}, login: "alice", refused: "the branch release says"},
		"wrong":                           {files: map[string]string{"main": "kind: [\n"}, login: "root", refused: "is wrong"},
		"wrong on the default branch":     {base: "mine", files: map[string]string{"main": "", "mine": strict}, login: "root", refused: "is wrong"},
		"naming a file":                   {files: map[string]string{"main": permissionsHead + "repositoryFile: x\n"}, login: "root", refused: "only the server's"},
		"longer than it may be":           {files: map[string]string{"main": permissionsHead + "#" + strings.Repeat("x", chatops.MaxPermissions)}, login: "root", refused: "did not say"},
		"a team of nobody's, role enough": {files: map[string]string{"main": permissionsHead + "default: {role: write, teams: [gone]}\n"}, login: "alice"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, withPermissions(t, "repositoryFile: "+file+"\n"), func(w *world) {
				for branch, content := range c.files {
					w.gh.SetFile(repoName, branch, file, content)
				}
				w.gh.EditPullRequest(repoName, pull, func(p *githubtest.PullRequest) { p.Base = c.base })
			})
			e, reply := w.run(1, c.login, "/promote")
			if c.refused == "" {
				wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
				return
			}
			wantEnd(t, e, cluster.EntryRefused, rollout.ReasonDenied)
			wantIn(t, reply, c.refused)
			w.wantShares(untouched)
		})
	}
}

// When the API cannot say, nobody may.
func TestPermissionsThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rules string
		fault githubtest.Fault
	}{
		"teams refused":     {"default: {teams: [ml-leads]}\n", githubtest.Fault{Path: "/memberships/", Status: 403}},
		"teams down":        {"default: {teams: [ml-leads]}\n", githubtest.Fault{Path: "/memberships/", Status: 500}},
		"file refused":      {"repositoryFile: x\n", githubtest.Fault{Path: "/contents/", Status: 403}},
		"file out of sight": {"repositoryFile: x\n", githubtest.Fault{Path: "/contents/", Status: 404}},
		"file down":         {"repositoryFile: x\n", githubtest.Fault{Path: "/contents/", Status: 502}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, withPermissions(t, c.rules))
			w.gh.AddFault(c.fault)
			e, reply := w.run(1, map[bool]string{true: "root", false: "rita"}[strings.HasPrefix(name, "file")], "/promote")
			wantEnd(t, e, cluster.EntryRefused, rollout.ReasonDenied)
			wantIn(t, reply, "did not say", "command line")
			w.wantShares(untouched)
		})
	}
	t.Run("nobody to ask", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(w *world) { w.options.Permissions = permissions(t, "default: {teams: [ml-leads]}\n") })
		e, _ := w.run(1, "root", "/promote")
		wantEnd(t, e, cluster.EntryRefused, rollout.ReasonDenied)
	})
}
