package sshtrust

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tree makes a root of files; a text that begins with "-> " is a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, link := strings.CutPrefix(text, "-> "); err == nil && link {
			err = os.Symlink(target, path)
		} else if err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func install(t *testing.T, dir string) error {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	return Install(root)
}

// regularFiles returns the files of a root with their texts.
func regularFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, dir+"/")] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const debianConfig = "# see sshd_config(5)\nInclude /etc/ssh/sshd_config.d/*.conf\n#AuthorizedKeysCommand none\nUsePAM yes\n"

func TestOnlySSHDThatCanIsConfigured(t *testing.T) {
	const extra = configDir + "/50-cloud-init.conf"
	for name, tc := range map[string]struct {
		files     map[string]string
		installed bool
		fails     bool
	}{
		"Debian":                    {map[string]string{mainConfig: debianConfig, extra: "PasswordAuthentication no\n"}, true, false},
		"a CA of its own":           {map[string]string{mainConfig: debianConfig, extra: "TrustedUserCAKeys /etc/ssh/ca.pub\n"}, true, false},
		"again":                     {map[string]string{mainConfig: debianConfig, dropIn: "of an older agent\n"}, true, false},
		"relative":                  {map[string]string{mainConfig: "include = sshd_config.d/*.conf", extra: ""}, true, false},
		"no sshd":                   {map[string]string{"etc/hostname": "a"}, false, false},
		"no include":                {map[string]string{mainConfig: "UsePAM yes\n", extra: ""}, false, false},
		"include for some":          {map[string]string{mainConfig: "Match User a\n" + debianConfig, extra: ""}, false, false},
		"no directory":              {map[string]string{mainConfig: debianConfig}, false, false},
		"a command of its own":      {map[string]string{mainConfig: debianConfig + "AuthorizedKeysCommand /bin/keys\n", extra: ""}, false, false},
		"a command in another file": {map[string]string{mainConfig: debianConfig, extra: "\tauthorizedkeyscommand=\"/bin/keys\"\n", dropIn: dropInText}, false, false},
		"a link out of the root":    {map[string]string{mainConfig: debianConfig, configDir: "-> ../../.."}, false, true},
	} {
		dir := tree(t, tc.files)
		if err := install(t, dir); (err != nil) != tc.fails {
			t.Errorf("%s: %v", name, err)
		}
		want := maps.Clone(tc.files)
		delete(want, dropIn)
		delete(want, configDir)
		if tc.installed {
			want[dropIn] = dropInText
		}
		if got := regularFiles(t, dir); !maps.Equal(got, want) {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

var trust = wire.SSHTrust{Authority: "ssh-ed25519 AAAA", Principal: "vm_a"}

func TestTrustIsReplaced(t *testing.T) {
	dir := tree(t, map[string]string{
		mainConfig: debianConfig, configDir + "/x": "", "etc/ssh/ssh_host_ed25519_key.pub": "ssh-ed25519 BBBB root@a\n",
		"etc/ssh/ssh_host_bad_key.pub": "x", "etc/ssh/ssh_host_big_key.pub": strings.Repeat("x ", maxFile), "etc/ssh/ssh_host_rsa_key": "private",
	})
	if s := State(dir); s.Certificates || len(s.HostKeys) != 1 || s.HostKeys[0] != "ssh-ed25519 BBBB" {
		t.Errorf("before it is %+v", s)
	}
	if err := install(t, dir); err != nil {
		t.Fatal(err)
	}
	if State(dir).Certificates {
		t.Error("nothing is trusted yet")
	}
	for _, vm := range []string{"vm_a", "vm_b"} {
		if err := Write(dir, wire.SSHTrust{Authority: trust.Authority, Principal: vm}); err != nil {
			t.Fatal(err)
		}
		if got, want := regularFiles(t, dir)[keysFile], `cert-authority,principals="`+vm+`" ssh-ed25519 AAAA`+"\n"; got != want {
			t.Errorf("got %q", got)
		}
	}
	if !State(dir).Certificates {
		t.Error("it is not reported")
	}
	for range 2 {
		if err := Remove(dir); err != nil || State(dir).Certificates {
			t.Errorf("after its removal: %v", err)
		}
	}
}
